//! Setting up the guest, from the kernel's hand-over to the point where containers can be made.
//!
//! Runs once, as the first code of pid 1, in the initial root file system. Its cost is part of
//! every start of a container, so it does no more than a container needs.
//!
//! A template of machines may be made at its end, from which any number of guests go on. So it uses
//! nothing of the host's, such as the shared directory, and draws no random number that must be
//! secret or a guest's own.

mod console;
mod filesystems;
mod limits;
mod params;

use rustix::process::DumpableBehavior;
use rvm_sys::loopback;

pub use filesystems::{mount_shared, unmount_shared};

use crate::sys::{Doing as _, OsError, signal};

/// Sets the guest up. The steps depend on one another in this order.
pub fn run() -> Result<(), OsError> {
    signal::ignore_broken_pipes();
    filesystems::mount_kernel_interfaces()?;
    console::open_missing_standard_streams()?;
    let params = params::Params::read()?;
    crate::logging::start(params.log_filter());
    filesystems::mount_rest()?;
    filesystems::seal_root()?;
    limits::apply()?;
    loopback::bring_up().doing(|| "bring lo up")?;
    // Containers that share the guest's pid namespace must not read the agent's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "make the agent undumpable")?;
    Ok(())
}
