//! rvm state

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Global, IdArgs};

/// Prints a container's state, as the runtime specification defines it.
pub fn run(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    let state = container.state()?;
    let report = state.report(container.silent_since(&state));
    let text = serde_json::to_string_pretty(&report)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
