//! TAP interfaces: what the machine has in its hands of a network.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rvm_protocol::vmm::TAP_HEADER;

use super::netlink::Netlink;

/// How the names of all TAPs of sandboxes begin. A number follows.
const PREFIX: &str = "rvm";

/// The number of the first TAP that serves no interface yet. The numbers below are interfaces'.
const FIRST_IDLE: u32 = 1_000_000_000;

/// The number in the name of some sandbox's TAP: mostly the index of the interface that it serves.
pub fn number(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A TAP, which goes when the last descriptor of it is closed.
#[derive(Debug)]
pub struct Tap {
    /// Its index in the namespace.
    pub index: u32,
}

/// For which interface a TAP is made. There is one TAP for each in a namespace, by its name.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The interface of this index.
    Link(u32),
    /// None for now; the number tells them apart.
    Idle(u32),
}

impl Purpose {
    fn name(self) -> String {
        match self {
            Self::Link(index) => format!("{PREFIX}{index}"),
            Self::Idle(number) => format!("{PREFIX}{}", FIRST_IDLE + number),
        }
    }
}

impl Tap {
    /// Makes one in the calling thread's namespace. `AlreadyExists` if there is one for the same
    /// purpose.
    pub fn create(purpose: Purpose) -> io::Result<(Self, File)> {
        let name = purpose.name();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        set_interface(&file, &name).map_err(taken)?;
        set_header_size(&file)?;
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            None,
        )?;
        let index = rustix::net::netdevice::name_to_index(socket.as_fd(), &name)?;
        Ok((Self { index }, file))
    }

    /// Gives it to another interface, or to none. It must be down. `AlreadyExists` if there is one
    /// for the same purpose.
    pub fn give_to(&self, netlink: &mut Netlink, purpose: Purpose) -> io::Result<()> {
        let name = LinkAttribute::IfName(purpose.name());
        self.set(netlink, vec![name], LinkFlags::empty())
            .map_err(taken)
    }

    /// Makes it ready to pass packets of that size on. It stays without an address: its own kernel
    /// has nothing to say on it.
    pub fn bring_up(&self, netlink: &mut Netlink, mtu: u32) -> io::Result<()> {
        let mtu = LinkAttribute::Mtu(mtu);
        let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let quiet = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![no_address])]);
        match self.set(netlink, vec![mtu, quiet], LinkFlags::empty()) {
            // The host has no IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            other => other?,
        }
        self.set(netlink, Vec::new(), LinkFlags::Up)
    }

    /// Sets how large the packets are that it passes on.
    pub fn resize(&self, netlink: &mut Netlink, mtu: u32) -> io::Result<()> {
        let mtu = LinkAttribute::Mtu(mtu);
        self.set(netlink, vec![mtu], LinkFlags::empty())
    }

    /// Stops it.
    pub fn take_down(&self, netlink: &mut Netlink) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.change_mask = LinkFlags::Up;
        netlink.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn set(
        &self,
        netlink: &mut Netlink,
        attributes: Vec<LinkAttribute>,
        flags: LinkFlags,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = flags;
        message.header.change_mask = flags;
        message.attributes = attributes;
        netlink.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}

/// Brings up the loopback interface, which is the first of every namespace.
pub fn bring_up_loopback(netlink: &mut Netlink) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = 1;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

fn taken(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => io::ErrorKind::AlreadyExists.into(),
        _ => error,
    }
}

/// Makes the descriptor a new TAP's. Packets come with a header that says what their checksums and
/// segments lack, and no other.
#[expect(unsafe_code, reason = "ioctl")]
fn set_interface(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: names that are made here are shorter.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives across the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whoever serves the machine may make no such call.
#[expect(unsafe_code, reason = "ioctl")]
fn set_header_size(file: &File) -> io::Result<()> {
    let size = TAP_HEADER as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives across the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
