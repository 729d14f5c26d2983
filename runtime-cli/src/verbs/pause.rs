//! rvm pause and rvm resume

use std::process::ExitCode;

use rvm_sandbox::container::running;

use super::block_on;
use crate::cli::{Global, IdArgs};

/// Makes every process of a container stand still.
pub fn pause(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    block_on(running::pause(&container))??;
    Ok(ExitCode::SUCCESS)
}

/// Lets them go on.
pub fn resume(global: &Global, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let container = global.store().open(&args.id)?;
    block_on(running::resume(&container))??;
    Ok(ExitCode::SUCCESS)
}
