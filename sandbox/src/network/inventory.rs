//! The contents of a network namespace, and the part of them that the guest gets. Pure except for
//! [`Inventory::scan`].
//!
//! The guest does not get what its own kernel creates (the local table, the routes that come with
//! addresses, the default rules), what it learns (neighbours, router advertisements), and
//! interfaces that are not Ethernet.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rvm_protocol::agent::{ConfigureNetworkRequest, Interface, InterfaceSetting};

use super::netlink::Netlink;
use super::{sysctls, tap, translate};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The flags that the guest's interface copies from the host's; see netdevice(7).
const FLAGS: LinkFlags = LinkFlags::Up
    .union(LinkFlags::Noarp)
    .union(LinkFlags::Promisc)
    .union(LinkFlags::Allmulti)
    .union(LinkFlags::Multicast);

const LOOPBACK: &str = "lo";

/// An interface that the guest gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its index in the namespace.
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    flags: LinkFlags,
    sysctls: Vec<InterfaceSetting>,
}

/// The contents of a namespace.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The interfaces for the guest, by ascending index.
    pub links: Vec<Link>,
    /// Interfaces that the guest cannot have, with the reasons.
    pub skipped: Vec<(String, &'static str)>,
    /// The indices of the interfaces that a TAP of some sandbox serves.
    pub served: Vec<u32>,
    loopback: Option<u32>,
    addresses: Vec<AddressMessage>,
    neighbours: Vec<NeighbourMessage>,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
}

impl Inventory {
    /// Reads the namespace that the socket belongs to.
    pub fn scan(netlink: &mut Netlink) -> io::Result<Self> {
        let mut messages = Vec::new();
        for request in [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
            RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            RouteNetlinkMessage::GetRule(RuleMessage::default()),
        ] {
            messages.extend(netlink.dump(&request)?);
        }
        Ok(Self::from_messages(messages))
    }

    fn from_messages(messages: Vec<RouteNetlinkMessage>) -> Self {
        let mut inventory = Self::default();
        for message in messages {
            match message {
                RouteNetlinkMessage::NewLink(link) => inventory.add_link(&link),
                RouteNetlinkMessage::NewAddress(address) => inventory.addresses.push(address),
                RouteNetlinkMessage::NewNeighbour(neighbour) => {
                    inventory.neighbours.push(neighbour)
                }
                RouteNetlinkMessage::NewRoute(route) => inventory.routes.push(route),
                RouteNetlinkMessage::NewRule(rule) => inventory.rules.push(rule),
                _ => {}
            }
        }
        inventory.links.sort_by_key(|link| link.index);
        inventory
    }

    fn add_link(&mut self, message: &LinkMessage) {
        if message.header.flags.contains(LinkFlags::Loopback) {
            self.loopback = Some(message.header.index);
            return;
        }
        let attributes = Attributes::of(message);
        if let Some(index) = attributes.served_link() {
            self.served.push(index);
            return;
        }
        match attributes.unsupported(message) {
            None => self.links.push(attributes.link(message)),
            Some(reason) => self.skipped.push((attributes.name, reason)),
        }
    }

    /// The agent's configuration of the guest's network. `nic` gives the NIC that serves an
    /// interface; the request leaves out an interface without a NIC, and all that depends on it.
    pub fn request(&self, nic: impl Fn(u32) -> Option<Mac>) -> ConfigureNetworkRequest {
        let served: Vec<_> = self
            .links
            .iter()
            .filter_map(|link| Some((link, nic(link.index)?)))
            .collect();
        let device = |index: u32| {
            let link = served.iter().find(|(link, _)| link.index == index);
            match link {
                Some((link, _)) => Some(link.name.clone()),
                None => (Some(index) == self.loopback).then(|| LOOPBACK.to_owned()),
            }
        };
        let mut routes: Vec<_> = self
            .routes
            .iter()
            .filter_map(|route| translate::route(route, &device))
            .collect();
        // The route to a gateway must exist before the routes through it. The sort is stable.
        routes.sort_by_key(translate::has_gateway);
        ConfigureNetworkRequest {
            interfaces: served
                .iter()
                .map(|(link, nic)| link.interface(*nic))
                .collect(),
            addresses: self
                .addresses
                .iter()
                .filter_map(|address| {
                    let own = |name: &str| name != LOOPBACK || !translate::is_loopback(address);
                    let device = device(address.header.index).filter(|name| own(name))?;
                    translate::address(address, device, self.has_prefix_route(address))
                })
                .collect(),
            neighbours: self
                .neighbours
                .iter()
                .filter_map(|neighbour| translate::neighbour(neighbour, &device))
                .collect(),
            routes,
            rules: self.rules.iter().filter_map(translate::rule).collect(),
            ..Default::default()
        }
    }

    /// Whether the kernel keeps a route to the address's network, which it does unless the address
    /// has `noprefixroute` or the route was removed. Assumed for an interface that is down.
    fn has_prefix_route(&self, address: &AddressMessage) -> bool {
        let index = address.header.index;
        let is_up = |link: &Link| link.index == index && link.flags.contains(LinkFlags::Up);
        !self.links.iter().any(is_up)
            || self
                .routes
                .iter()
                .any(|route| translate::is_prefix_route(route, address))
    }
}

/// Why the guest could not have an interface if it were moved into its network namespace: what is
/// below it stays where it is.
pub(super) fn why_not_for_guest(message: &LinkMessage) -> Option<&'static str> {
    let attributes = Attributes {
        lower: None,
        ..Attributes::of(message)
    };
    attributes.unsupported(message)
}

/// The attributes of an interface.
#[derive(Default)]
struct Attributes {
    name: String,
    address: Vec<u8>,
    mtu: u32,
    kind: Option<InfoKind>,
    has_master: bool,
    /// The index of its lower interface, if that is in the same namespace.
    lower: Option<u32>,
    sysctls: Vec<InterfaceSetting>,
}

impl Attributes {
    fn of(message: &LinkMessage) -> Self {
        let mut attributes = Self::default();
        let mut elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => attributes.name.clone_from(name),
                LinkAttribute::Address(address) => attributes.address.clone_from(address),
                LinkAttribute::Mtu(mtu) => attributes.mtu = *mtu,
                LinkAttribute::Controller(_) => attributes.has_master = true,
                LinkAttribute::Link(index) => attributes.lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => attributes.kind = translate::link_kind(infos),
                LinkAttribute::AfSpecUnspec(specs) => attributes.sysctls = sysctls::of(specs),
                _ => {}
            }
        }
        attributes.lower = attributes.lower.filter(|_| !elsewhere);
        attributes
    }

    /// The index of the interface that this one serves, if it is the TAP of some sandbox.
    fn served_link(&self) -> Option<u32> {
        tap::served_link(&self.name).filter(|_| self.kind == Some(InfoKind::Tun))
    }

    /// Why the guest cannot have the interface.
    fn unsupported(&self, message: &LinkMessage) -> Option<&'static str> {
        use InfoKind::{ErSpan, GreTap, GreTap6, Ip6ErSpan, IpVlan, MacVlan, Vlan};
        if message.header.link_layer_type != LinkLayerType::Ether || self.mac().is_none() {
            return Some("it is no Ethernet interface");
        }
        if self.has_master {
            return Some("it is a port of another interface");
        }
        match self.kind {
            Some(GreTap | GreTap6 | ErSpan | Ip6ErSpan) => Some("it is a tunnel's end"),
            Some(Vlan | MacVlan | IpVlan) if self.lower.is_some() => {
                Some("it lies on top of another interface of the same namespace")
            }
            _ => None,
        }
    }

    fn mac(&self) -> Option<Mac> {
        self.address.as_slice().try_into().ok()
    }

    fn link(self, message: &LinkMessage) -> Link {
        Link {
            index: message.header.index,
            mac: self.mac().unwrap_or_default(),
            name: self.name,
            mtu: self.mtu,
            flags: message.header.flags & FLAGS,
            sysctls: self.sysctls,
        }
    }
}

impl Link {
    fn interface(&self, nic: Mac) -> Interface {
        Interface {
            card: nic.to_vec(),
            name: self.name.clone(),
            mac: self.mac.to_vec(),
            mtu: self.mtu,
            flags: self.flags.bits(),
            settings: self.sysctls.clone(),
            ..Default::default()
        }
    }
}
