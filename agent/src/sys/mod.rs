//! System calls that rustix lacks and only the agent makes, each behind a safe façade; `rvm_sys`
//! has those that the host makes too.
//!
//! No function keeps state. [`clone`], [`signal`] and [`caps`] allocate nothing, because the child
//! of [`clone::clone_process`] calls them.

pub mod caps;
pub mod clock;
pub mod clone;
mod error;
pub mod loop_device;
pub mod netlink;
pub mod port;
pub mod random;
pub mod sched;
pub mod signal;
pub mod vsock;

pub use error::{Doing, OsError, errno_text};

use rvm_sys::{check, last_errno};
