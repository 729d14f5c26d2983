//! A process that stands for a container of a shim, which has several: this program once more. It
//! enters the namespaces that the shim sends it, passes on the signals that it receives, and does
//! nothing else. SIGKILL to it is SIGKILL to the container, which the shim sees to.
//!
//! ```text
//!   shim ──a namespace──> stand-in: setns(2) ──errno──> shim      its standard input, a socket
//!   somebody ──signal──> stand-in ──its number──> shim            its standard output, a pipe
//! ```

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};
use rustix::process::Signal;
use rustix::thread::move_into_link_name_space;
use tokio::net::unix::pipe;

use crate::host::signals::Signals;
use rvm_sys::readiness::Readable;

/// The name that the program is called by as a stand-in, in the place of its path.
pub const PROGRAM: &str = "rvm-container";

/// How long a stand-in may take to enter a namespace; somebody may have stopped it.
const ENTER_TIMEOUT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// A stand-in, for its shim. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct StandIn {
    pid: i32,
    child: Mutex<Child>,
    socket: OwnedFd,
    signals: tokio::sync::Mutex<pipe::Receiver>,
}

impl StandIn {
    /// Starts the process. Called within a tokio runtime, on a thread that lives as long as the
    /// container.
    pub(super) fn spawn(container: &str) -> io::Result<Self> {
        let kind = SocketType::SEQPACKET;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let (signals, reported) = io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg0(PROGRAM)
            .arg(container)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(reported)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            pid: child.id().cast_signed(),
            child: Mutex::new(child),
            socket,
            signals: tokio::sync::Mutex::new(pipe::Receiver::from_owned_fd(signals.into())?),
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Moves the process into a namespace.
    pub(super) fn enter(&self, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let fds = [namespace];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let message = [io::IoSlice::new(&[0])];
        sendmsg(&self.socket, &message, &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answered = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut answered, Some(&ENTER_TIMEOUT))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut errno = [0; 4];
        match recv(&self.socket, &mut errno, RecvFlags::DONTWAIT)? {
            (4, _) => match i32::from_ne_bytes(errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits for the next signal that somebody sends to the process; `None` once it has ended.
    /// Cancel safe.
    pub(super) async fn signal(&self) -> Option<i32> {
        let signals = self.signals.lock().await;
        let mut number = [0];
        loop {
            signals.readable().await.ok()?;
            match signals.try_read(&mut number) {
                Ok(1) => return Some(number[0].into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return None,
            }
        }
    }

    /// Ends the process, and waits until it is gone.
    pub(super) fn end(&self) -> io::Result<()> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only when the process was waited for already.
        child.kill().and_then(|()| child.wait()).map(drop)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Is a stand-in, until the shim has gone. The calling process must have one thread.
pub fn run() -> io::Result<()> {
    // The shim may have been stopped when it was killed, and its end of the socket stays open then.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let signals = Signals::block()?;
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let orders = Readable::new(stdin.as_fd())?;
        loop {
            tokio::select! {
                signal = signals.next() => {
                    let number = u8::try_from(signal?).unwrap_or_default();
                    rustix::io::write(stdout.as_fd(), &[number])?;
                }
                namespace = orders.read(receive) => match namespace? {
                    None => return Ok(()),
                    Some(namespace) => {
                        let entered = move_into_link_name_space(namespace.as_fd(), None);
                        let errno = entered.err().map_or(0, Errno::raw_os_error);
                        send(stdin.as_fd(), &errno.to_ne_bytes(), SendFlags::NOSIGNAL)?;
                    }
                },
            }
        }
    })
}

/// Receives a namespace; `None` if the other end is closed.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        flags,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.next()
        .map(Some)
        .ok_or(io::ErrorKind::InvalidData.into())
}
