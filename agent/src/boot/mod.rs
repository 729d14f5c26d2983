//! From the kernel's hand-over to a machine in which containers can be made.
//!
//! Runs once, first thing, as pid 1 in the initial root file system. Its cost is part of every
//! start of a container, so it does what a container needs and no more.

mod console;
mod filesystems;
mod limits;
mod params;

use rustix::process::DumpableBehavior;
use rvm_sys::loopback;

pub use filesystems::{start_writing_back, unmount_shared};
pub use limits::{HARD_NOFILE, SOFT_NOFILE};
pub use params::Params;

use crate::sys::{Doing as _, OsError, signal};

/// Why the guest could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A system call failed.
    #[error(transparent)]
    Os(#[from] OsError),
    /// The kernel command line names a shared file system that the agent does not know.
    #[error("kernel parameter rvm.shared={0}: neither virtiofs nor 9p")]
    UnknownShared(String),
}

/// Sets the guest up; the order matters.
pub fn run() -> Result<Params, BootError> {
    signal::ignore_broken_pipes();
    filesystems::mount_kernel_interfaces()?;
    console::open_missing_standard_streams()?;
    let params = Params::read()?;
    crate::logging::start(params.log_filter());
    filesystems::mount_rest(params.shared())?;
    filesystems::seal_root()?;
    limits::apply()?;
    loopback::bring_up().doing(|| "bring lo up")?;
    // Containers that share the guest's pid namespace must not read the agent's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "make the agent undumpable")?;
    Ok(params)
}
