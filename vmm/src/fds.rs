//! The descriptors that came with a configuration, and descriptors of types without `AsFd`.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rvm_protocol::vmm::{FdIndex, VsockPort};
use vmm_sys_util::eventfd::EventFd;

/// The configuration names a descriptor that did not come with it, or names one twice.
#[derive(Debug, thiserror::Error)]
#[error("the configuration came without its descriptor {0}")]
pub struct MissingFd(usize);

/// The descriptors that came with a configuration. Each can be taken once.
pub struct PassedFds(Vec<Option<OwnedFd>>);

impl PassedFds {
    /// Takes the descriptors in the order in which they came.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, MissingFd> {
        self.0
            .get_mut(index.0)
            .and_then(Option::take)
            .ok_or(MissingFd(index.0))
    }

    /// Takes the listeners of guest ports.
    pub fn take_listeners(
        &mut self,
        ports: &[VsockPort],
    ) -> Result<Vec<(u32, UnixListener)>, MissingFd> {
        ports
            .iter()
            .map(|port| Ok((port.port, UnixListener::from(self.take(port.listener)?))))
            .collect()
    }
}

#[expect(unsafe_code, reason = "EventFd implements only AsRawFd")]
pub fn borrow_eventfd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the EventFd, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
