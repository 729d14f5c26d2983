//! TAP interfaces, the host's end of the machine's NICs.

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

/// The prefix of the names of all sandboxes' TAPs. A number follows.
const PREFIX: &str = "rvm";

/// The number of the first idle TAP. Lower numbers are indices of interfaces.
const FIRST_IDLE: u32 = 1_000_000_000;

/// The index of the interface that a TAP of this name serves; [`FIRST_IDLE`] or more if it is idle.
pub fn served_link(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A TAP. The kernel removes it when its last descriptor is closed.
#[derive(Debug)]
pub struct Tap {
    /// Its index in the namespace.
    pub index: u32,
}

/// The name of a TAP. It names the interface that the TAP serves, so that an interface of a
/// namespace has one TAP at the most.
#[derive(Clone, Copy, Debug)]
pub enum TapName {
    /// Serves the interface with this index.
    Link(u32),
    /// Serves none; the number makes the name unique.
    Idle(u32),
}

impl TapName {
    fn text(self) -> String {
        match self {
            Self::Link(index) => format!("{PREFIX}{index}"),
            Self::Idle(number) => format!("{PREFIX}{}", FIRST_IDLE + number),
        }
    }
}

impl Tap {
    /// Creates a TAP in the calling thread's namespace. `AlreadyExists` if the name is in use.
    pub fn create(name: TapName) -> io::Result<(Self, File)> {
        let name = name.text();
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        set_interface(&file, &name).map_err(already_exists)?;
        set_header_size(&file)?;
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            None,
        )?;
        let index = rustix::net::netdevice::name_to_index(socket.as_fd(), &name)?;
        Ok((Self { index }, file))
    }

    /// Renames the TAP, which must be down. `AlreadyExists` if the name is in use.
    pub fn rename(&self, netlink: &mut Netlink, name: TapName) -> io::Result<()> {
        let name = LinkAttribute::IfName(name.text());
        self.set(netlink, vec![name], LinkFlags::empty())
            .map_err(already_exists)
    }

    /// Sets the MTU and brings the TAP up, without a link-local address: the host's kernel must not
    /// send on it.
    pub fn set_up(&self, netlink: &mut Netlink, mtu: u32) -> io::Result<()> {
        let mtu = LinkAttribute::Mtu(mtu);
        let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let no_link_local =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![no_address])]);
        match self.set(netlink, vec![mtu, no_link_local], LinkFlags::empty()) {
            // The host has no IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            other => other?,
        }
        self.set(netlink, Vec::new(), LinkFlags::Up)
    }

    pub fn set_mtu(&self, netlink: &mut Netlink, mtu: u32) -> io::Result<()> {
        let mtu = LinkAttribute::Mtu(mtu);
        self.set(netlink, vec![mtu], LinkFlags::empty())
    }

    pub fn set_down(&self, netlink: &mut Netlink) -> io::Result<()> {
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

/// Brings up the loopback interface, which has index 1 in every namespace.
pub fn bring_up_loopback(netlink: &mut Netlink) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = 1;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

fn already_exists(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => io::ErrorKind::AlreadyExists.into(),
        _ => error,
    }
}

/// Creates the TAP (TUNSETIFF). Packets have a virtio_net_hdr in front, and no other header.
#[expect(unsafe_code, reason = "ioctl")]
fn set_interface(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the names are shorter.
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

/// Sets the size of virtio_net_hdr. The jailed processes that use the TAP must not make this call.
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
