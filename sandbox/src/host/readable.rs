//! Waiting for a descriptor that tokio has no type for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that becomes readable.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Waits on a descriptor of its own for what `fd` refers to. Called within a tokio runtime.
    #[expect(unsafe_code, reason = "AsyncFd::register_with_interest")]
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let own = fd.try_clone_to_owned()?;
        // SAFETY: the descriptor is open and owned by the AsyncFd, and an OwnedFd never changes the
        // descriptor it stands for.
        let fd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
        Ok(Self(fd))
    }

    /// Returns when the descriptor is readable, and tries `read`; goes on waiting while that would
    /// block. May be given up at any time.
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
