//! rvm delete

use std::process::ExitCode;

use rvm_sandbox::container::lifecycle;
use rvm_sandbox::state::StateError;

use super::block_on;
use crate::cli::{DeleteArgs, Global};

/// Deletes a container. With --force, one that does not exist is no error.
pub fn run(global: &Global, args: &DeleteArgs) -> anyhow::Result<ExitCode> {
    match global.store().open(&args.id) {
        Err(StateError::NotFound(_)) if args.force => {}
        container => block_on(lifecycle::delete(&container?, args.force))??,
    }
    Ok(ExitCode::SUCCESS)
}
