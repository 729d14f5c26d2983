//! Answers to what the host asks from within the namespace.
//!
//! Docker's name server for containers asks other servers from sockets in the container's namespace,
//! over the container's interface. What comes back belongs to the host and not to the guest. It is
//! told by its port: sockets of the host in the namespace get theirs from a range that a guest's
//! sockets are not given theirs from unless they ask for one.

use std::fs;
use std::io;

use super::filter::{self, Bits, Fate, Place};
use super::netlink::Netlink;
use super::redirect;

/// The ports for sockets that the host opens: the last 256.
const PORTS: &str = "65280 65535";

/// Where the kernel keeps which ports those are, in the namespace of whoever looks.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// From port 53, to the ports above. Both lie side by side in UDP and TCP.
const NAME_SERVERS: (u32, u32) = (0xffff_ff00, 53 << 16 | 0xff00);

const IPV4: Place = Place {
    priority: 0x7271,
    protocol: libc::ETH_P_IP,
};
const ARP: Place = Place {
    priority: 0x7272,
    protocol: libc::ETH_P_ARP,
};
const IPV6: Place = Place {
    priority: 0x7273,
    protocol: libc::ETH_P_IPV6,
};

/// Where the filters are.
pub const PLACES: [Place; 3] = [IPV4, ARP, IPV6];

/// Has the host's sockets in the calling thread's namespace take their ports from the range.
pub fn set_ports() -> io::Result<()> {
    fs::write(PORT_RANGE, PORTS)
}

/// Lets the host have the answers of name servers to it. What it needs to send at all, the addresses
/// of its neighbours, it gets together with the guest.
pub fn start(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        let protocol = protocol as u32;
        let ipv4 = [
            // Version 4 and a header without options; no fragment; the protocol.
            bits(0, 0xff00_0000, 0x4500_0000),
            bits(4, 0x0000_3fff, 0),
            bits(8, 0x00ff_0000, protocol << 16),
            bits(20, NAME_SERVERS.0, NAME_SERVERS.1),
        ];
        redirect::add(netlink, filter::new(from, IPV4, &ipv4, Fate::Pass))?;
        let ipv6 = [
            bits(4, 0x0000_ff00, protocol << 8),
            bits(40, NAME_SERVERS.0, NAME_SERVERS.1),
        ];
        redirect::add(netlink, filter::new(from, IPV6, &ipv6, Fate::Pass))?;
    }
    let arp_reply = [bits(4, 0x0000_ffff, 2)];
    redirect::add(netlink, filter::new(from, ARP, &arp_reply, Fate::Copy(to)))?;
    // ICMPv6 of type 136.
    let neighbour_advertisement = [
        bits(4, 0x0000_ff00, 58 << 8),
        bits(40, 0xff00_0000, 136 << 24),
    ];
    let copy = filter::new(from, IPV6, &neighbour_advertisement, Fate::Copy(to));
    redirect::add(netlink, copy)
}

fn bits(offset: i32, mask: u32, value: u32) -> Bits {
    Bits {
        offset,
        mask,
        value,
    }
}
