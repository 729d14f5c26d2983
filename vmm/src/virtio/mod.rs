//! Virtio devices and the transports that carry them.
//!
//! A device ([`device::VirtioDevice`]) knows its queues, its configuration and its host
//! descriptors. It owns no interrupt, no epoll and no thread. The transports do: [`mmio`] connects
//! a device to this process's own machine, [`vhost_user`] to another program's. A device's folder
//! has `mod.rs` for the device, `spec.rs` for the numbers of its section of the specification, and
//! `tests.rs`.

mod backing;
pub mod balloon;
pub mod block;
mod budget;
pub mod chain;
pub mod console;
pub mod device;
pub mod empty;
mod epoll;
mod errand;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "serves tests alone"
)]
#[cfg_attr(not(test), allow(dead_code, reason = "a fuzzer needs a part of it"))]
pub mod fake_driver;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::unwrap_used,
    reason = "a test, of random tests and of a fuzzer"
)]
pub(crate) mod hostile;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pmem;
mod rate;
pub mod rng;
pub mod slot;
pub mod spec;
pub mod state;
pub mod thread;
pub mod vhost_user;
pub mod vsock;
