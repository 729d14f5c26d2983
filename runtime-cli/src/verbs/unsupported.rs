//! rvm checkpoint and rvm restore

use std::process::ExitCode;

use anyhow::bail;

/// Refuses a verb of runc's that rvm does not have.
pub fn run(verb: &str) -> anyhow::Result<ExitCode> {
    bail!(
        "{verb} is not supported: CRIU writes the processes of a host down, and those of a \
         container here are a virtual machine's"
    )
}
