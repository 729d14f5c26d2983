//! rvm features

use std::io::Write;
use std::process::ExitCode;

use rvm_sandbox::spec::features;

/// Prints what this runtime can do, as features.md of the runtime specification defines it.
pub fn run() -> anyhow::Result<ExitCode> {
    let text = serde_json::to_string_pretty(&features())?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
