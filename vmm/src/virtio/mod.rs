//! Virtio devices and the transports that carry them.
//!
//! A device ([`device::VirtioDevice`]) knows its queues, its configuration and its host
//! descriptors; it owns no interrupt, no epoll and no thread. The transports do: [`mmio`] puts a
//! device on our own machine's bus, [`vhost_user`] behind another program's.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod device;
pub mod empty;
#[cfg(test)]
pub mod fake;
pub mod fs;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod spec;
pub mod thread;
pub mod vhost_user;
pub mod vsock;
