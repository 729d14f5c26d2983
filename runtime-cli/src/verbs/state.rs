//! rvm state

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Global, IdArgs};

/// Prints a container's state, as the runtime specification defines it.
pub fn run(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let state = global.store().open(&args.id)?.state()?;
    let text = serde_json::to_string_pretty(&state.report())?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
