//! One end of a stream: a pipe, a terminal's master or a socket, read and written without blocking.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rvm_sys::readiness;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// A non-blocking descriptor that is known to the runtime.
pub struct Endpoint(AsyncFd<OwnedFd>);

impl Endpoint {
    /// Makes the descriptor non-blocking and registers it.
    pub fn new(fd: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        readiness::watch(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    /// Gives the descriptor back.
    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }

    /// Reads what there is, waiting for something; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // What a terminal's master says when the last slave has been closed.
                Err(Errno::IO) => return Ok(0),
                result => return Ok(result?),
            }
        }
    }

    /// Fills the buffer; an earlier end is an error.
    pub async fn read_exact(&self, buffer: &mut [u8]) -> std::io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Writes everything, waiting for room.
    pub async fn write_all(&self, mut data: &[u8]) -> std::io::Result<()> {
        while !data.is_empty() {
            match rustix::io::write(self.0.get_ref(), data) {
                Ok(count) => data = &data[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_writable().await?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    async fn wait_writable(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            // Readiness may be old news; the kernel is asked before it is believed.
            if self.is_writable() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn is_writable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }

    /// Returns when the reading end of this pipe has been closed.
    pub async fn reader_closed(&self) {
        loop {
            match self.0.ready(Interest::ERROR).await {
                Ok(mut ready) if !self.has_error() => {
                    ready.clear_ready_matching(Ready::ERROR);
                }
                _ => return,
            }
        }
    }

    fn has_error(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }

    /// Tells the peer of a socket that nothing more will come.
    pub fn finish_writing(&self) {
        // It fails when the peer is gone, and then it does not matter.
        let _ = shutdown(self.0.get_ref(), Shutdown::Write);
    }

    /// Ends a socket both ways: whoever reads it sees its end.
    pub fn finish(&self) {
        let _ = shutdown(self.0.get_ref(), Shutdown::Both);
    }

    /// Whether the peer of a socket has closed it altogether, and not only its writing half: an
    /// empty send fails then, and does nothing otherwise.
    pub fn peer_is_gone(&self) -> bool {
        matches!(send(self.0.get_ref(), &[], SendFlags::NOSIGNAL), Err(errno) if errno != Errno::AGAIN)
    }
}
