//! Replies to DNS queries that the host sends from within the namespace.
//!
//! Docker's embedded DNS server forwards queries from sockets in the container's namespace, over
//! the container's interface. The replies belong to the host and not to the guest. The port tells
//! them apart: the host's sockets in the namespace get ephemeral ports from a range that the
//! guest's sockets use only if they bind to one explicitly.

use std::fs;
use std::io;

use super::filter::{self, Action, Match, Slot};
use super::netlink::Netlink;
use super::redirect;

/// The ephemeral ports of the host's sockets: the last 256.
const PORTS: &str = "65280 65535";

/// The sysctl of the calling thread's namespace.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Mask and value of the ports of a reply: source 53, destination in [`PORTS`]. UDP and TCP headers
/// both begin with them.
const DNS_PORTS: (u32, u32) = (0xffff_ff00, 53 << 16 | 0xff00);

const IPV4: Slot = Slot {
    priority: 0x7271,
    protocol: libc::ETH_P_IP,
};
const ARP: Slot = Slot {
    priority: 0x7272,
    protocol: libc::ETH_P_ARP,
};
const IPV6: Slot = Slot {
    priority: 0x7273,
    protocol: libc::ETH_P_IPV6,
};

/// The slots of all filters of this module.
pub const SLOTS: [Slot; 3] = [IPV4, ARP, IPV6];

/// Restricts the host's sockets in the calling thread's namespace to [`PORTS`].
pub fn set_port_range() -> io::Result<()> {
    fs::write(PORT_RANGE, PORTS)
}

/// Passes DNS replies for the host to the host's network. The ARP and neighbour discovery replies
/// that the host needs to send at all go to both the host and the guest.
pub fn add_filters(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        let protocol = protocol as u32;
        let ipv4 = [
            // Version 4 and a header without options; not a fragment; the protocol.
            field(0, 0xff00_0000, 0x4500_0000),
            field(4, 0x0000_3fff, 0),
            field(8, 0x00ff_0000, protocol << 16),
            field(20, DNS_PORTS.0, DNS_PORTS.1),
        ];
        redirect::add(netlink, filter::new(from, IPV4, &ipv4, Action::Pass))?;
        let ipv6 = [
            field(4, 0x0000_ff00, protocol << 8),
            field(40, DNS_PORTS.0, DNS_PORTS.1),
        ];
        redirect::add(netlink, filter::new(from, IPV6, &ipv6, Action::Pass))?;
    }
    let arp_reply = [field(4, 0x0000_ffff, 2)];
    redirect::add(
        netlink,
        filter::new(from, ARP, &arp_reply, Action::Copy(to)),
    )?;
    // ICMPv6, type 136.
    let neighbour_advertisement = [
        field(4, 0x0000_ff00, 58 << 8),
        field(40, 0xff00_0000, 136 << 24),
    ];
    let copy = filter::new(from, IPV6, &neighbour_advertisement, Action::Copy(to));
    redirect::add(netlink, copy)
}

fn field(offset: i32, mask: u32, value: u32) -> Match {
    Match {
        offset,
        mask,
        value,
    }
}
