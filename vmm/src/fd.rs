//! Descriptors of types that predate `AsFd`.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// Borrows an eventfd's descriptor.
#[expect(unsafe_code, reason = "EventFd implements only AsRawFd")]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the EventFd, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
