//! System calls that rustix lacks, each behind a safe façade, and small text formats of Linux.
//!
//! Host and guest both use them: what only one side needs stays in its crate. Every module stands
//! alone but [`bpf`], [`hook`], [`readiness`] and [`fanotify`], which use the ones listed before
//! them.

mod syscall;

pub mod accounts;
pub mod beneath;
pub mod clone;
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
pub mod seccomp;

pub mod bpf;
#[cfg(feature = "tokio")]
pub mod readiness;
#[cfg(feature = "fanotify")]
pub mod fanotify;

pub mod hook;

pub use syscall::{check, last_errno};
