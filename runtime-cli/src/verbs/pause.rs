//! rvm pause and rvm resume

use std::process::ExitCode;

use rvm_sandbox::container::running;

use super::block_on;
use crate::cli::{Global, IdArgs};

/// Freezes the processes of a container.
pub fn pause(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    block_on(running::pause(&container))??;
    Ok(ExitCode::SUCCESS)
}

/// Thaws the processes of a container.
pub fn resume(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    block_on(running::resume(&container))??;
    Ok(ExitCode::SUCCESS)
}
