//! Descriptors that the runtime watches.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor for reading and writing.
pub fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Watches a descriptor for something in particular.
pub fn watch_for(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its number, and keeps it open until it is dropped, which AsyncFd
    // does only after having withdrawn it from the runtime.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}
