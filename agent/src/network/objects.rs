//! Addresses, neighbours, routes and rules as rtnetlink messages. Pure.

use std::fmt;

use rvm_protocol::agent::{
    ConfigureNetworkRequest, NetworkAttribute, NetworkObject, NextHop as ApiNextHop,
};

use super::NetworkError;
use crate::sys::netlink::Message;

/// The kinds of objects, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Address,
    Neighbour,
    Route,
    Rule,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Address, Self::Neighbour, Self::Route, Self::Rule];

    /// The objects of this kind in a request.
    pub fn of(self, request: &ConfigureNetworkRequest) -> &[NetworkObject] {
        match self {
            Self::Address => &request.addresses,
            Self::Neighbour => &request.neighbours,
            Self::Route => &request.routes,
            Self::Rule => &request.rules,
        }
    }

    /// The types of the messages that make and remove one.
    fn messages(self) -> (u16, u16) {
        match self {
            Self::Address => (libc::RTM_NEWADDR, libc::RTM_DELADDR),
            Self::Neighbour => (libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH),
            Self::Route => (libc::RTM_NEWROUTE, libc::RTM_DELROUTE),
            Self::Rule => (libc::RTM_NEWRULE, libc::RTM_DELRULE),
        }
    }

    /// The length of its header: struct ifaddrmsg, ndmsg, rtmsg, fib_rule_hdr.
    fn header(self) -> usize {
        match self {
            Self::Address => 8,
            Self::Neighbour | Self::Route | Self::Rule => 12,
        }
    }
}

/// An object with the indices of its interfaces.
#[derive(Debug, PartialEq)]
pub struct Object {
    kind: Kind,
    header: Vec<u8>,
    attributes: Vec<NetworkAttribute>,
    /// 0 for none.
    index: u32,
    next_hops: Vec<NextHop>,
}

#[derive(Debug, PartialEq)]
struct NextHop {
    flags: u8,
    hops: u8,
    index: u32,
    attributes: Vec<NetworkAttribute>,
}

impl Object {
    /// Reads an object of a request; `index` finds the interfaces.
    pub fn resolve(
        kind: Kind,
        object: &NetworkObject,
        index: &impl Fn(&str) -> Result<u32, NetworkError>,
    ) -> Result<Self, NetworkError> {
        if object.header.len() != kind.header() {
            return Err(NetworkError::Malformed("a header of another length"));
        }
        let next_hop = |hop: &ApiNextHop| {
            Ok::<_, NetworkError>(NextHop {
                flags: hop.flags as u8,
                hops: hop.hops as u8,
                index: index(&hop.device)?,
                attributes: hop.attributes.clone(),
            })
        };
        Ok(Self {
            kind,
            header: object.header.clone(),
            attributes: object.attributes.clone(),
            index: index(&object.device)?,
            next_hops: object
                .next_hops
                .iter()
                .map(next_hop)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The request that makes it.
    pub fn addition(&self) -> Message {
        let is_ipv6 = i32::from(self.header[0]) == libc::AF_INET6;
        let flags = match self.kind {
            Kind::Neighbour => libc::NLM_F_REPLACE,
            // IPv4 may have several ways to one place; IPv6 has one with several next hops.
            Kind::Route if !is_ipv6 => libc::NLM_F_APPEND,
            _ => libc::NLM_F_EXCL,
        };
        self.message(self.kind.messages().0, libc::NLM_F_CREATE | flags)
    }

    /// The request that removes it.
    pub fn removal(&self) -> Message {
        self.message(self.kind.messages().1, 0)
    }

    fn message(&self, message: u16, flags: libc::c_int) -> Message {
        let mut header = self.header.clone();
        if matches!(self.kind, Kind::Address | Kind::Neighbour) {
            header[4..8].copy_from_slice(&self.index.to_ne_bytes());
        }
        let mut message = Message::new(message, flags as u16, &header);
        add(&mut message, &self.attributes);
        if self.kind == Kind::Route && self.index != 0 {
            message.attribute(libc::RTA_OIF, &self.index.to_ne_bytes());
        }
        if !self.next_hops.is_empty() {
            message.nested(libc::RTA_MULTIPATH, |message| {
                self.next_hops.iter().for_each(|hop| hop.add_to(message));
            });
        }
        message
    }
}

impl NextHop {
    /// struct rtnexthop, and its attributes.
    fn add_to(&self, message: &mut Message) {
        message.sized(|message| {
            message.bytes(&[self.flags, self.hops]);
            message.bytes(&self.index.to_ne_bytes());
            add(message, &self.attributes);
        });
    }
}

fn add(message: &mut Message, attributes: &[NetworkAttribute]) {
    for attribute in attributes {
        message.attribute(attribute.kind as u16, &attribute.value);
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RTA_DST, RTA_GATEWAY; NDA_DST; IFA_ADDRESS. Rules are told by their priority.
        const FRA_PRIORITY: u32 = 6;
        let attribute = |kind: u32| {
            let mut list = self.attributes.iter();
            list.find(|attribute| attribute.kind & 0x3fff == kind)
                .map(|attribute| Address(&attribute.value))
        };
        let prefix = self.header[1];
        match self.kind {
            Kind::Address => write_named(f, "the address", attribute(1), Some(prefix)),
            Kind::Neighbour => write_named(f, "the neighbour", attribute(1), None),
            Kind::Rule => match attribute(FRA_PRIORITY).and_then(|priority| priority.number()) {
                Some(priority) => write!(f, "the rule of priority {priority}"),
                None => f.write_str("a rule"),
            },
            Kind::Route => {
                write_named(f, "the route to", attribute(1), Some(prefix))?;
                match attribute(5) {
                    Some(gateway) => write!(f, " by way of {gateway}"),
                    None => Ok(()),
                }
            }
        }
    }
}

fn write_named(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    address: Option<Address<'_>>,
    prefix: Option<u8>,
) -> fmt::Result {
    match (address, prefix) {
        (Some(address), Some(prefix)) => write!(f, "{what} {address}/{prefix}"),
        (Some(address), None) => write!(f, "{what} {address}"),
        (None, _) => write!(f, "{what} everywhere"),
    }
}

/// An IP address as attributes have it.
struct Address<'bytes>(&'bytes [u8]);

impl Address<'_> {
    fn number(&self) -> Option<u32> {
        self.0.first_chunk().copied().map(u32::from_ne_bytes)
    }
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(v4) = <[u8; 4]>::try_from(self.0) {
            write!(f, "{}", std::net::Ipv4Addr::from(v4))
        } else if let Ok(v6) = <[u8; 16]>::try_from(self.0) {
            write!(f, "{}", std::net::Ipv6Addr::from(v6))
        } else {
            write!(f, "{:02x?}", self.0)
        }
    }
}
