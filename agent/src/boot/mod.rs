//! Setting up the guest, from the kernel's hand-over to the point where containers can be made.
//!
//! Runs once, as the first code of pid 1, in the initial root file system. Its cost is part of
//! every start of a container, so it does no more than a container needs.

mod console;
mod filesystems;
mod limits;
mod params;

use rustix::process::DumpableBehavior;
use rvm_sys::loopback;

pub use filesystems::{start_writing_back, unmount_shared};

use crate::sys::{Doing as _, OsError, signal};

/// Why the guest could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Os(#[from] OsError),
    #[error("kernel parameter rvm.shared={0}: neither virtiofs nor 9p")]
    UnknownShared(String),
}

/// Sets the guest up. The steps depend on one another in this order.
pub fn run() -> Result<(), BootError> {
    signal::ignore_broken_pipes();
    filesystems::mount_kernel_interfaces()?;
    console::open_missing_standard_streams()?;
    let params = params::Params::read()?;
    crate::logging::start(params.log_filter());
    filesystems::mount_rest(params.shared())?;
    filesystems::seal_root()?;
    limits::apply()?;
    loopback::bring_up().doing(|| "bring lo up")?;
    // Containers that share the guest's pid namespace must not read the agent's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "make the agent undumpable")?;
    Ok(())
}
