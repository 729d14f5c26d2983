//! The few system calls that rustix lacks, each behind a safe façade, and what they share.
//!
//! Everything here is stateless. Nothing in it allocates unless it says so, because the child of
//! [`clone`] calls some of it.

pub mod bpf;
pub mod caps;
pub mod clone;
mod error;
pub mod keyring;
pub mod mount;
pub mod net;
pub mod netlink;
pub mod port;
pub mod readiness;
pub mod sched;
pub mod seccomp;
pub mod signal;
pub mod vsock;

pub use error::{Doing, OsError, errno_text};

use rustix::io::Errno;

/// Turns the return value of a raw system call into a result, by glibc's convention.
pub(crate) fn check(value: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if value >= 0 {
        Ok(value)
    } else {
        Err(last_errno())
    }
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
