//! The agent's end of the socket to a process that prepares to execute its program; see
//! [`crate::init::channel`].

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rvm_sys::readiness::watch;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::init::channel::{Report, receive};
use crate::sys::{Doing as _, OsError};

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The init process reports that a stage of its preparation failed.
    #[error("unable to start container process: {}{message}", prefix(.stage))]
    Init { stage: String, message: String },
    /// A process that joins a container reports the same.
    #[error("unable to start container process: {0}")]
    Join(String),
    /// The process ended without a report.
    #[error(
        "unable to start container process: it ended while it was being prepared; a memory or \
         process limit may be too low"
    )]
    Ended,
    #[error("unable to start container process")]
    Os(#[from] OsError),
}

/// runc reports a program that cannot be executed without saying where it noticed.
fn prefix(stage: &str) -> &'static str {
    if stage == "exec" {
        ""
    } else {
        "error during container init: "
    }
}

/// Dropping it ends the process, unless that runs its program already.
pub struct Control {
    socket: AsyncFd<OwnedFd>,
}

/// How far a process has come.
pub enum Progress {
    /// The process has made a terminal, whose master this is.
    Terminal(OwnedFd),
    /// The process waits for [`Control::proceed`].
    Ready,
    /// The process runs its program.
    Executed,
}

impl Control {
    /// Makes the socket; the second end is the process's.
    pub fn new() -> Result<(Self, OwnedFd), OsError> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .doing(|| "make a control socket")?;
        rustix::io::ioctl_fionbio(&ours, true).doing(|| "make a control socket")?;
        let socket = watch(ours, Interest::READABLE).doing(|| "watch a control socket")?;
        Ok((Self { socket }, theirs))
    }

    /// Lets the process go on where it waits.
    pub fn proceed(&self) -> Result<(), OsError> {
        send(self.socket.as_fd(), &[0], SendFlags::NOSIGNAL)
            .map(drop)
            .doing(|| "tell the container's process to go on")
    }

    /// Waits for the next report.
    pub async fn progress(&self) -> Result<Progress, LaunchError> {
        loop {
            let mut ready = self
                .socket
                .readable()
                .await
                .doing(|| "wait for the container's process")?;
            match receive(self.socket.get_ref()) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => Err(errno).doing(|| "receive a report of the container's process")?,
                Ok(None) => return Ok(Progress::Executed),
                Ok(Some((Report::Terminal, Some(master)))) => {
                    return Ok(Progress::Terminal(master));
                }
                Ok(Some((Report::Ready, _))) => return Ok(Progress::Ready),
                Ok(Some((Report::Failed { stage, message }, _))) => {
                    return Err(LaunchError::Init { stage, message });
                }
                Ok(Some((Report::Terminal, None))) => return Err(LaunchError::Ended),
            }
        }
    }

    /// Lets the process execute its program, and returns when it has.
    pub async fn start(self) -> Result<(), LaunchError> {
        self.proceed()?;
        match self.progress().await? {
            Progress::Executed => Ok(()),
            Progress::Terminal(_) | Progress::Ready => Err(LaunchError::Ended),
        }
    }
}
