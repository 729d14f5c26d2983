//! The messages between the agent and a process that prepares to execute its program.
//!
//! The process sends at most one `Terminal` with a descriptor, then `Ready` (the init process only)
//! or `Failed`. The init process then waits for one byte before it goes on. The end of the
//! connection, which execve(2) closes, means that the program runs.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// The longest message. A failure names a path at most a few times.
pub const MAX_MESSAGE: usize = 32 * 1024;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Carries the master of its terminal.
    Terminal,
    /// Everything is prepared and the program exists: the process waits for the byte.
    Ready,
    /// A stage failed, and the process ends.
    Failed { stage: String, message: String },
}

/// Sends a report, with a descriptor if there is one.
pub fn send(
    socket: BorrowedFd<'_>,
    report: &Report,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut text = serde_json::to_vec(report).map_err(|_| Errno::INVAL)?;
    text.truncate(MAX_MESSAGE);
    let Some(fd) = fd else {
        return rustix::io::write(socket, &text).map(drop);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let data = [std::io::IoSlice::new(&text)];
    sendmsg(socket, &data, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Receives a report; `None` at the end. The socket may be non-blocking.
pub fn receive(socket: impl AsFd) -> Result<Option<(Report, Option<OwnedFd>)>, Errno> {
    let mut text = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = {
        let mut data = [std::io::IoSliceMut::new(&mut text)];
        recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes
    };
    if length == 0 {
        return Ok(None);
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let report = serde_json::from_slice(&text[..length]).map_err(|_| Errno::PROTO)?;
    Ok(Some((report, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn sockets() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_terminal_arrives_with_its_descriptor() {
        let (ours, theirs) = sockets();
        let file = rustix::fs::memfd_create("master", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        send(theirs.as_fd(), &Report::Terminal, Some(file.as_fd())).unwrap();
        let (report, fd) = receive(&ours).unwrap().unwrap();
        assert_eq!(report, Report::Terminal);
        assert!(fd.is_some());
    }

    #[test]
    fn the_end_is_told_apart_from_a_report() {
        let (ours, theirs) = sockets();
        send(theirs.as_fd(), &Report::Ready, None).unwrap();
        drop(theirs);
        assert_eq!(receive(&ours).unwrap().unwrap().0, Report::Ready);
        assert!(receive(&ours).unwrap().is_none());
    }
}
