//! The control socket: one message a packet, with the descriptors that it names.
//!
//! A packet is `rvm/VERSION ` followed by the message in JSON. The version stands before the
//! message so that a peer can tell a packet of another version from a malformed one, whatever the
//! messages of that version look like.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::PROTOCOL_VERSION;

/// The most descriptors of one packet. The kernel's own bound is 253 (SCM_MAX_FD).
pub const MAX_FDS: usize = 64;

/// The largest packet, in bytes. A configuration with [`MAX_FDS`] devices stays far below it.
pub const MAX_PACKET: usize = 64 * 1024;

/// What every packet of a version begins with, up to the version's decimal digits.
const MAGIC: &[u8] = b"rvm/";

/// A message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A system call on the socket failed.
    #[error("control socket")]
    Socket(#[source] io::Error),
    /// The peer closed the socket.
    #[error("the other end closed the control socket")]
    Closed,
    /// The packet exceeds [`MAX_PACKET`] or carries more than [`MAX_FDS`] descriptors.
    #[error("a packet on the control socket was cut short")]
    Truncated,
    /// The peer was built with other messages. Builds that sent no version count as version 0.
    #[error(
        "this program speaks version {PROTOCOL_VERSION} of the control protocol and its peer \
         version {0}: install all of rvm from one build"
    )]
    Version(u32),
    /// The packet holds something else than the expected message.
    #[error("malformed message on the control socket")]
    Malformed(#[source] serde_json::Error),
}

/// One end of the control socket.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Creates two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Takes a connected seqpacket socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message with the descriptors that it names.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes = encode(message, PROTOCOL_VERSION)?;
        if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(ChannelError::Truncated);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::Truncated);
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(|e| ChannelError::Socket(e.into()))?;
        Ok(())
    }

    /// Receives one message and the descriptors that came with it, closed on exec.
    ///
    /// Blocks, unless the socket is nonblocking: then the error's source is `WouldBlock`.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|e| ChannelError::Socket(e.into()))?;
        let fds = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ChannelError::Truncated);
        }
        bytes.truncate(received.bytes);
        Ok((decode(&bytes)?, fds))
    }

    /// Gives the socket up, for a child process or an event loop.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn encode<T: Serialize>(message: &T, version: u32) -> Result<Vec<u8>, ChannelError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(version.to_string().as_bytes());
    bytes.push(b' ');
    serde_json::to_writer(&mut bytes, message).map_err(ChannelError::Malformed)?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, ChannelError> {
    let (version, message) = split_version(packet).unwrap_or((0, packet));
    if version != PROTOCOL_VERSION {
        return Err(ChannelError::Version(version));
    }
    serde_json::from_slice(message).map_err(ChannelError::Malformed)
}

/// The version of a packet and the message after it. None if the packet has no version.
fn split_version(packet: &[u8]) -> Option<(u32, &[u8])> {
    let rest = packet.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let version = str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    Some((version, &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let sent = Request::Resize {
            vcpus: 2,
            memory_mib: 7,
        };
        a.send(&sent, &[file.as_fd(), file.as_fd()]).unwrap();
        let (request, fds) = b.receive::<Request>().unwrap();
        assert_eq!(request, sent);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_closed_peer_is_told_from_a_malformed_packet() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&"not a request", &[]).unwrap();
        assert!(matches!(
            b.receive::<Request>(),
            Err(ChannelError::Malformed(_))
        ));
        drop(a);
        assert!(matches!(b.receive::<Request>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_sent() {
        let (a, _b) = Channel::pair().unwrap();
        let long = "x".repeat(MAX_PACKET);
        assert!(matches!(a.send(&long, &[]), Err(ChannelError::Truncated)));
    }

    #[test]
    fn a_packet_of_another_version_is_refused_with_both_versions() {
        let (a, b) = Channel::pair().unwrap();
        let newer = encode(&"a message of the future", PROTOCOL_VERSION + 1).unwrap();
        rustix::io::write(&a, &newer).unwrap();
        let error = b.receive::<Request>().unwrap_err();
        assert!(matches!(error, ChannelError::Version(version) if version == PROTOCOL_VERSION + 1));
        let message = error.to_string();
        for version in [PROTOCOL_VERSION, PROTOCOL_VERSION + 1] {
            assert!(message.contains(&version.to_string()), "{message}");
        }
    }

    #[test]
    fn a_packet_without_a_version_counts_as_version_0() {
        for packet in ["{\"parent\":1}", "rvm/", "rvm/x {}", "rvm/99999999999 {}"] {
            let result = decode::<Request>(packet.as_bytes());
            assert!(matches!(result, Err(ChannelError::Version(0))), "{packet}");
        }
    }
}
