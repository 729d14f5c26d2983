//! Waiting in a tokio runtime for descriptors that tokio has no type for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor. Called within a runtime.
#[expect(unsafe_code, reason = "AsyncFd::register_with_interest")]
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its number, and keeps it open until it is dropped, which AsyncFd
    // does only after it has withdrawn the descriptor from the runtime.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// A descriptor that becomes readable.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Watches a duplicate of `fd`. Called within a runtime.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        watch(fd.try_clone_to_owned()?, Interest::READABLE).map(Self)
    }

    /// Waits until the descriptor is readable and calls `read`, and waits again while that answers
    /// [`io::ErrorKind::WouldBlock`]. Cancel safe.
    pub async fn read<T>(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            match read(ready.get_inner().as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                other => return other,
            }
        }
    }
}
