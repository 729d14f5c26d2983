//! rvm checkpoint and rvm restore

use std::process::ExitCode;

use anyhow::bail;

/// Says that a verb of runc's is not there.
pub fn run(verb: &str) -> anyhow::Result<ExitCode> {
    bail!(
        "{verb} is not supported: CRIU writes the processes of a host down, and those of a \
         container here are a virtual machine's"
    )
}
