//! rvm start

use std::process::ExitCode;

use rvm_sandbox::container::lifecycle;

use super::block_on;
use crate::cli::{Global, IdArgs};

/// Executes the program of a created container.
pub fn run(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    block_on(lifecycle::start(&container))??;
    Ok(ExitCode::SUCCESS)
}
