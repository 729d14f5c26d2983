//! rtnetlink(7): messages put together by hand, and the kernel's answer to each.
//!
//! The crates for this know every message there is, and would make the agent much larger.

use std::os::fd::OwnedFd;

use rustix::io::{self, Errno};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// struct nlmsghdr.
const HEADER: usize = 16;

/// A request, in the machine's byte order.
pub struct Message(Vec<u8>);

impl Message {
    /// A request of a type, RTM_*, with flags beside those that every request has, NLM_F_*, and the
    /// header of its family.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = Vec::with_capacity(128);
        // `finish` writes the length. Sequence and port numbers serve overlapping requests, of
        // which there are none.
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Self(bytes)
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.0.extend(value));
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.sized(|message| {
            message.0.extend(kind.to_ne_bytes());
            fill(message);
        });
    }

    /// Adds what `fill` adds, after its own length in two bytes.
    pub fn sized(&mut self, fill: impl FnOnce(&mut Self)) {
        self.align();
        let start = self.0.len();
        self.0.extend([0; 2]);
        fill(self);
        // The kernel refuses what does not fit: the message then ends in the middle of an
        // attribute.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The message as it is sent.
    pub fn finish(mut self) -> Vec<u8> {
        self.align();
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A socket for requests about the network namespace that it was opened in.
pub struct Netlink(OwnedFd);

impl Netlink {
    pub fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is 0.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends a request, which the kernel carries out before this returns.
    pub fn request(&self, message: Message) -> io::Result<()> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0; 256];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        let kind = answer[4..6] == (libc::NLMSG_ERROR as u16).to_ne_bytes();
        let code = answer[..length].get(HEADER..).and_then(<[u8]>::first_chunk);
        match code {
            Some(code) if kind => match i32::from_ne_bytes(*code) {
                0 => Ok(()),
                error => Err(Errno::from_raw_os_error(-error)),
            },
            _ => Err(Errno::PROTO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_know_their_length() {
        let mut message = Message::new(16, 0, &[1, 2, 3, 4]);
        message.attribute(3, b"lo\0");
        message.nested(26, |message| message.attribute(10, &[1]));
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(bytes[..4], 40_u32.to_ne_bytes());
        assert_eq!(bytes[20..22], 7_u16.to_ne_bytes());
        assert_eq!(bytes[28..30], 9_u16.to_ne_bytes(), "the last is not padded");
    }

    #[test]
    fn the_kernels_refusal_is_an_error() {
        let netlink = Netlink::open().unwrap();
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let refused = netlink.request(Message::new(libc::RTM_SETLINK, 0, &header));
        assert_eq!(refused, Err(Errno::NODEV));
    }
}
