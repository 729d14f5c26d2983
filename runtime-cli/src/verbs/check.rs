//! rvm check

use std::process::ExitCode;

use rvm_sandbox::check;

use crate::cli::Global;

/// Prints what this host can do. The exit code is 1 if containers cannot run here.
pub fn run(global: &Global) -> anyhow::Result<ExitCode> {
    let report = check::run(&global.config()?);
    use std::io::Write;
    write!(std::io::stdout(), "{report}")?;
    Ok(if report.works() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
