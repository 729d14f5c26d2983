//! System calls that rustix lacks, each behind a safe façade, and small text formats of Linux.
//!
//! Host and guest both use them: what only one side needs stays in its crate. Every module stands
//! alone but [`bpf`], [`hook`], [`readiness`], [`fanotify`] and `faults`, which use the ones listed
//! before them.

mod syscall;

pub mod accounts;
pub mod beneath;
pub mod clone;
#[cfg(feature = "faults")]
pub mod faults;
pub mod cpu_list;
pub mod error_chain;
pub mod inherited_fds;
pub mod keyring;
pub mod landlock;
pub mod loopback;
pub mod mempolicy;
pub mod mount;
pub mod namespaces;
pub mod ofd_locks;
pub mod process_memory;
pub mod seccomp;

pub mod bpf;
#[cfg(feature = "tokio")]
pub mod readiness;
#[cfg(feature = "fanotify")]
pub mod fanotify;

pub mod hook;

pub use syscall::{check, last_errno};

/// A point at which tests have a process fail, wait or die, see `faults`; an `io::Result<()>`.
#[cfg(feature = "faults")]
#[macro_export]
macro_rules! fault_point {
    ($name:literal) => {
        $crate::faults::pass($name)
    };
}

/// Nothing: a point for tests, in a build without them. An `io::Result<()>`.
#[cfg(not(feature = "faults"))]
#[macro_export]
macro_rules! fault_point {
    ($name:literal) => {
        ::std::io::Result::Ok(())
    };
}

/// The environment that says what happens at the points.
#[cfg(feature = "faults")]
pub use faults::environment as fault_environment;

/// Nothing: there are no points in this build.
#[cfg(not(feature = "faults"))]
pub fn fault_environment() -> Vec<std::ffi::CString> {
    Vec::new()
}
