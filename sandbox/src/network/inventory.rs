//! What there is in a network namespace, and what of it the guest is to have. Pure, but for
//! [`Found::look`].
//!
//! Not taken over: what the guest's kernel makes by itself (the local table, the routes that come
//! with addresses, the default rules), what it learns by itself (neighbours, router
//! advertisements), and interfaces that are no Ethernet cards.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rvm_protocol::agent::{ConfigureNetworkRequest, Interface, InterfaceSetting};

use super::netlink::Netlink;
use super::{objects, settings, tap};

/// A MAC address.
pub type Mac = [u8; 6];

/// The flags that a guest's interface has as the host's; see netdevice(7).
const FLAGS: LinkFlags = LinkFlags::Up
    .union(LinkFlags::Noarp)
    .union(LinkFlags::Promisc)
    .union(LinkFlags::Allmulti)
    .union(LinkFlags::Multicast);

/// The loopback interface, which every namespace has.
const LOOPBACK: &str = "lo";

/// An interface that the guest is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its index in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// The largest packet without its Ethernet header, in bytes.
    pub mtu: u32,
    flags: LinkFlags,
    settings: Vec<InterfaceSetting>,
}

/// The contents of a namespace.
#[derive(Debug, Default)]
pub struct Found {
    /// The interfaces for the guest, in the order of their indices.
    pub links: Vec<Link>,
    /// Interfaces that the guest cannot have, and why.
    pub left: Vec<(String, &'static str)>,
    /// The interfaces that a sandbox has.
    pub taken: Vec<u32>,
    loopback: Option<u32>,
    addresses: Vec<AddressMessage>,
    neighbours: Vec<NeighbourMessage>,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
}

impl Found {
    /// Reads the namespace that the socket belongs to.
    pub fn look(netlink: &mut Netlink) -> io::Result<Self> {
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
        Ok(Self::of(messages))
    }

    fn of(messages: Vec<RouteNetlinkMessage>) -> Self {
        let mut found = Self::default();
        for message in messages {
            match message {
                RouteNetlinkMessage::NewLink(link) => found.add_link(&link),
                RouteNetlinkMessage::NewAddress(address) => found.addresses.push(address),
                RouteNetlinkMessage::NewNeighbour(neighbour) => found.neighbours.push(neighbour),
                RouteNetlinkMessage::NewRoute(route) => found.routes.push(route),
                RouteNetlinkMessage::NewRule(rule) => found.rules.push(rule),
                _ => {}
            }
        }
        found.links.sort_by_key(|link| link.index);
        found
    }

    fn add_link(&mut self, message: &LinkMessage) {
        if message.header.flags.contains(LinkFlags::Loopback) {
            self.loopback = Some(message.header.index);
            return;
        }
        let facts = Facts::of(message);
        if let Some(number) = facts.served() {
            self.taken.push(number);
            return;
        }
        match facts.obstacle(message) {
            None => self.links.push(facts.link(message)),
            Some(reason) => self.left.push((facts.name, reason)),
        }
    }

    /// What the guest is told. `card` names the card that serves an interface; one without is left
    /// out, with all that depends on it.
    pub fn request(&self, card: impl Fn(u32) -> Option<Mac>) -> ConfigureNetworkRequest {
        let served: Vec<_> = self
            .links
            .iter()
            .filter_map(|link| Some((link, card(link.index)?)))
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
            .filter_map(|route| objects::route(route, &device))
            .collect();
        // The way to a gateway must be there before what goes through it. The sort is stable.
        routes.sort_by_key(objects::needs_others);
        ConfigureNetworkRequest {
            interfaces: served
                .iter()
                .map(|(link, card)| link.interface(*card))
                .collect(),
            addresses: self
                .addresses
                .iter()
                .filter_map(|address| {
                    let own = |name: &str| name != LOOPBACK || !objects::is_loopback(address);
                    let device = device(address.header.index).filter(|name| own(name))?;
                    objects::address(address, device, self.has_prefix_route(address))
                })
                .collect(),
            neighbours: self
                .neighbours
                .iter()
                .filter_map(|neighbour| objects::neighbour(neighbour, &device))
                .collect(),
            routes,
            rules: self.rules.iter().filter_map(objects::rule).collect(),
            ..Default::default()
        }
    }

    /// Whether the kernel keeps a route to the address's network, as it does unless told not to or
    /// somebody has removed it. Of an interface that is down this cannot be said.
    fn has_prefix_route(&self, address: &AddressMessage) -> bool {
        let index = address.header.index;
        let is_up = |link: &Link| link.index == index && link.flags.contains(LinkFlags::Up);
        !self.links.iter().any(is_up)
            || self
                .routes
                .iter()
                .any(|route| objects::is_prefix_route(route, address))
    }
}

/// What the attributes of an interface say.
#[derive(Default)]
struct Facts {
    name: String,
    address: Vec<u8>,
    mtu: u32,
    kind: Option<InfoKind>,
    has_master: bool,
    /// The interface below it, if that is in the same namespace.
    lower: Option<u32>,
    settings: Vec<InterfaceSetting>,
}

impl Facts {
    fn of(message: &LinkMessage) -> Self {
        let mut facts = Self::default();
        let mut elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => facts.name.clone_from(name),
                LinkAttribute::Address(address) => facts.address.clone_from(address),
                LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
                LinkAttribute::Controller(_) => facts.has_master = true,
                LinkAttribute::Link(index) => facts.lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => facts.kind = settings::kind(infos),
                LinkAttribute::AfSpecUnspec(specs) => facts.settings = settings::of(specs),
                _ => {}
            }
        }
        facts.lower = facts.lower.filter(|_| !elsewhere);
        facts
    }

    /// Of the TAP of a sandbox, this one or another, the interface that it serves.
    fn served(&self) -> Option<u32> {
        tap::number(&self.name).filter(|_| self.kind == Some(InfoKind::Tun))
    }

    /// Why the guest cannot have it.
    fn obstacle(&self, message: &LinkMessage) -> Option<&'static str> {
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
            settings: self.settings,
        }
    }
}

impl Link {
    fn interface(&self, card: Mac) -> Interface {
        Interface {
            card: card.to_vec(),
            name: self.name.clone(),
            mac: self.mac.to_vec(),
            mtu: self.mtu,
            flags: self.flags.bits(),
            settings: self.settings.clone(),
            ..Default::default()
        }
    }
}
