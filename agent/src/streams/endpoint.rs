//! One end of a stream: a pipe, the master of a terminal or a socket, read and written without
//! blocking.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rvm_sys::readiness;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// A non-blocking descriptor, registered with the runtime.
pub struct Endpoint(AsyncFd<OwnedFd>);

impl Endpoint {
    /// Makes the descriptor non-blocking and registers it.
    pub fn new(fd: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        readiness::watch(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }

    /// Waits for data and reads what there is; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // The master of a terminal, once the last slave is closed.
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

    /// Writes everything, and waits for room as needed.
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
            // tokio's readiness may be out of date: ask the kernel.
            if self.is_writable() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn is_writable(&self) -> bool {
        self.polls(PollFlags::OUT)
    }

    /// Waits until the reading end of this pipe is closed.
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
        self.polls(PollFlags::empty())
    }

    /// Whether poll(2) reports one of these events, or an error, at once.
    fn polls(&self, events: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.0.get_ref(), events)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
    }

    /// Shuts the writing half of a socket down: the peer reads the end.
    pub fn finish_writing(&self) {
        // Fails if the peer is gone.
        let _ = shutdown(self.0.get_ref(), Shutdown::Write);
    }

    /// Shuts a socket down both ways.
    pub fn finish(&self) {
        let _ = shutdown(self.0.get_ref(), Shutdown::Both);
    }

    /// Whether the peer of a socket has closed it altogether, and not only its writing half: an
    /// empty send fails then, and does nothing otherwise.
    pub fn peer_is_gone(&self) -> bool {
        matches!(send(self.0.get_ref(), &[], SendFlags::NOSIGNAL), Err(errno) if errno != Errno::AGAIN)
    }
}
