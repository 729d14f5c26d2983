//! From rtnetlink messages of the host's namespace to the agent's network objects. Pure.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, Nla};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{InfoKind, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol,
};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rvm_protocol::agent::{NetworkAttribute, NetworkObject, NextHop};

/// Translates an address. None for what the guest's kernel creates or learns by itself.
pub fn address(
    message: &AddressMessage,
    device: String,
    has_prefix_route: bool,
) -> Option<NetworkObject> {
    let flags = flags(message);
    let is_ipv6 = message.header.family == AddressFamily::Inet6;
    if is_ipv6 && !flags.contains(AddressFlags::Permanent) {
        // From a router advertisement, which the guest receives too.
        return None;
    }
    let mut kept = flags & (AddressFlags::Noprefixroute | AddressFlags::Mcautojoin);
    if is_ipv6 {
        // The host has already done duplicate address detection.
        kept |= AddressFlags::Nodad;
    }
    if !has_prefix_route && has_network(message) {
        kept |= AddressFlags::Noprefixroute;
    }
    let mut header = message.header.clone();
    header.index = 0;
    header.flags = AddressHeaderFlags::empty();
    let attributes = message.attributes.iter().filter_map(|given| match given {
        AddressAttribute::Flags(_) | AddressAttribute::CacheInfo(_) => None,
        other => Some(attribute(other)),
    });
    Some(NetworkObject {
        header: emit(&header),
        attributes: attributes
            .chain([attribute(&AddressAttribute::Flags(kept))])
            .collect(),
        device,
        ..Default::default()
    })
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let from_attribute = message.attributes.iter().find_map(|given| match given {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    from_attribute
        .unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()))
}

/// Whether the kernel gives the address a route to its network.
fn has_network(message: &AddressMessage) -> bool {
    message.header.family == AddressFamily::Inet6
        || message.header.prefix_len < 32
        || peer(message) != local(message)
}

/// The interface's own address.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|given| match given {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| peer(message))
}

/// The peer of a point-to-point link; otherwise the interface's own address.
fn peer(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|given| match given {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// 127.0.0.1 or ::1, which every loopback interface has.
pub fn is_loopback(message: &AddressMessage) -> bool {
    match local(message) {
        Some(IpAddr::V4(address)) => address.octets() == [127, 0, 0, 1],
        Some(IpAddr::V6(address)) => address.is_loopback(),
        None => true,
    }
}

/// Whether this is the route to an address's network that the kernel created with the address.
pub fn is_prefix_route(route: &RouteMessage, address: &AddressMessage) -> bool {
    let destination = route.attributes.iter().find_map(|given| match given {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    });
    let length = address.header.prefix_len;
    route.header.protocol == RouteProtocol::Kernel
        && route.header.destination_prefix_length == length
        && route
            .attributes
            .contains(&RouteAttribute::Oif(address.header.index))
        && destination.is_some()
        && destination == peer(address).map(|address| network(address, length))
}

/// The network address of an address.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(length.min(32)))
                .unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(length.min(128)))
                .unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

/// Translates a permanent neighbour.
pub fn neighbour(
    message: &NeighbourMessage,
    device: &impl Fn(u32) -> Option<String>,
) -> Option<NetworkObject> {
    let family = message.header.family;
    let is_ip = matches!(family, AddressFamily::Inet | AddressFamily::Inet6);
    if !is_ip || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let device = device(message.header.ifindex)?;
    let mut header = message.header.clone();
    header.ifindex = 0;
    header.flags &= NeighbourFlags::Router | NeighbourFlags::Proxy;
    let attributes = message.attributes.iter().filter_map(|given| match given {
        NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_) => {
            Some(attribute(given))
        }
        _ => None,
    });
    Some(NetworkObject {
        header: emit(&header),
        attributes: attributes.collect(),
        device,
        ..Default::default()
    })
}

/// Translates a route. None for what the guest's kernel creates or learns by itself, and for a
/// route over an interface that the guest does not have.
pub fn route(
    message: &RouteMessage,
    device: &impl Fn(u32) -> Option<String>,
) -> Option<NetworkObject> {
    use RouteProtocol::{IcmpRedirect, Kernel, Ra};
    if matches!(message.header.protocol, Kernel | Ra | IcmpRedirect)
        || message.header.flags.contains(RouteFlags::Cloned)
        || !matches!(
            message.header.address_family,
            AddressFamily::Inet | AddressFamily::Inet6
        )
    {
        return None;
    }
    let mut header = message.header.clone();
    header.flags &= RouteFlags::Onlink;
    let mut object = NetworkObject {
        header: emit(&header),
        ..Default::default()
    };
    for given in &message.attributes {
        match given {
            RouteAttribute::Oif(index) => object.device = device(*index)?,
            RouteAttribute::MultiPath(hops) => {
                object.next_hops = hops
                    .iter()
                    .map(|hop| next_hop(hop, device))
                    .collect::<Option<_>>()?;
            }
            // State of the host's kernel. A next hop id comes with the hop's attributes.
            RouteAttribute::CacheInfo(_)
            | RouteAttribute::MfcStats(_)
            | RouteAttribute::Expires(_)
            | RouteAttribute::MulticastExpires(_)
            | RouteAttribute::NhId(_) => {}
            other => object.attributes.push(attribute(other)),
        }
    }
    Some(object)
}

fn next_hop(hop: &RouteNextHop, device: &impl Fn(u32) -> Option<String>) -> Option<NextHop> {
    Some(NextHop {
        flags: (hop.flags & RouteNextHopFlags::Onlink).bits().into(),
        hops: hop.hops.into(),
        device: device(hop.interface_index)?,
        attributes: hop.attributes.iter().map(attribute).collect(),
        ..Default::default()
    })
}

/// Whether a route needs another one, to its gateway.
pub fn has_gateway(route: &NetworkObject) -> bool {
    /// RTA_GATEWAY and RTA_VIA, see rtnetlink(7).
    const GATEWAY: u32 = 5;
    const VIA: u32 = 18;
    let is_gateway = |given: &NetworkAttribute| matches!(given.kind, GATEWAY | VIA);
    route.attributes.iter().any(is_gateway)
        || route
            .next_hops
            .iter()
            .any(|hop| hop.attributes.iter().any(is_gateway))
}

/// Translates a rule. None for the kernel's default rules.
pub fn rule(message: &RuleMessage) -> Option<NetworkObject> {
    let by_kernel = RuleAttribute::Protocol(RouteProtocol::Kernel);
    let is_ip = matches!(
        message.header.family,
        AddressFamily::Inet | AddressFamily::Inet6
    );
    if !is_ip || message.attributes.contains(&by_kernel) {
        return None;
    }
    let mut header = message.header.clone();
    header.flags &= RuleFlags::Invert;
    Some(NetworkObject {
        header: emit(&header),
        attributes: message.attributes.iter().map(attribute).collect(),
        ..Default::default()
    })
}

/// An interface's kind, unless it is a hardware device.
pub fn link_kind(infos: &[LinkInfo]) -> Option<InfoKind> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

fn emit(part: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; part.buffer_len()];
    part.emit(&mut bytes);
    bytes
}

fn attribute(given: &impl Nla) -> NetworkAttribute {
    let mut value = vec![0; given.value_len()];
    given.emit_value(&mut value);
    NetworkAttribute {
        kind: given.kind().into(),
        value,
        ..Default::default()
    }
}
