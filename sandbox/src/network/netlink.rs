//! A blocking rtnetlink(7) client for requests, and a socket for notifications.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// The most that the kernel writes into one packet (NLMSG_GOODSIZE and the dump's upper bound).
const BUFFER: usize = 32 * 1024;

/// NLMSG_ALIGNTO.
const ALIGNMENT: usize = 4;

/// The kernel replies within the call of send, so this never expires in practice.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Attempts at a dump that is interrupted by changes.
const DUMP_ATTEMPTS: usize = 10;

/// RTNLGRP_* of linux/rtnetlink.h: links, neighbours, and per family addresses, routes and rules.
const GROUPS: u32 =
    group(1) | group(3) | group(5) | group(7) | group(8) | group(9) | group(11) | group(19);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

fn open(flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | flags,
        // NETLINK_ROUTE is 0.
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// A socket for requests. It acts on the namespace that it was opened in, whatever thread uses it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let socket = open(SocketFlags::empty(), 0)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(REPLY_TIMEOUT))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a change. `flags` are NLM_F_CREATE and the like.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let [changed] = self.change_all([(message, flags)])?;
        changed
    }

    /// Makes changes in order, whether earlier ones fail or not. The kernel makes them all within
    /// one system call, so even a SIGKILL of this process does not come between them.
    pub fn change_all<const N: usize>(
        &mut self,
        changes: [(RouteNetlinkMessage, u16); N],
    ) -> io::Result<[io::Result<()>; N]> {
        let mut packet = Vec::new();
        let requests = changes.map(|(message, flags)| {
            self.append(&mut packet, message, NLM_F_REQUEST | NLM_F_ACK | flags)
        });
        send(&self.socket, &packet, SendFlags::empty())?;
        Ok(requests.map(|request| self.receive(request, |_| {}).map(|_| ())))
    }

    /// Lists the objects that a request asks for.
    pub fn dump(&mut self, request: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut packet = Vec::new();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let request = self.append(&mut packet, request.clone(), flags);
            send(&self.socket, &packet, SendFlags::empty())?;
            let mut list = Vec::new();
            if self.receive(request, |message| list.push(message))? {
                return Ok(list);
            }
        }
        Err(io::Error::other("it changes too often to be listed"))
    }

    /// Appends a request to a packet, and returns its sequence number.
    fn append(&mut self, packet: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = packet.len();
        let end = start + message.buffer_len();
        packet.resize(end.next_multiple_of(ALIGNMENT), 0);
        message.serialize(&mut packet[start..end]);
        self.sequence
    }

    /// Calls `take` with every message of the reply. False if changes interrupted a dump.
    fn receive(&self, request: u32, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        let mut consistent = true;
        loop {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((bytes, next)) = split(rest) {
                rest = next;
                let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        // The library does not know this message; the others are usable.
                        tracing::debug!("rtnetlink: {error}");
                        continue;
                    }
                };
                if message.header.sequence_number != request {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => take(inner),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(true), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::Done(_) => return Ok(consistent),
                    _ => {}
                }
            }
        }
    }
}

/// Splits a packet after its first message.
fn split(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = packet.first_chunk().copied().map(u32::from_ne_bytes)?;
    let length = length as usize;
    let first = packet.get(..length).filter(|_| length > 0)?;
    let aligned = length.next_multiple_of(ALIGNMENT).min(packet.len());
    Some((first, &packet[aligned..]))
}

/// Opens a non-blocking socket for notifications of [`GROUPS`] in the calling thread's namespace.
pub fn open_notifications() -> io::Result<OwnedFd> {
    open(SocketFlags::NONBLOCK, GROUPS)
}

/// Reads all pending notifications. False if there were none.
pub fn drain(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut some = false;
    loop {
        // The contents do not matter: a scan reads the new state.
        match recv(socket, &mut [0; 1], RecvFlags::TRUNC) {
            // Notifications were lost, so there were some.
            Ok(_) | Err(Errno::NOBUFS) => some = true,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(some),
            Err(error) => return Err(error.into()),
        }
    }
}
