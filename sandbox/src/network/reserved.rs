//! The names of interfaces that a machine has no room for.
//!
//! An engine that connects a running container to another network moves an interface into the
//! namespace and names it after the others: Docker and Podman call the second one `eth1`. Nothing
//! can veto the move. But the name can be taken: then the engine fails, tells its user, and removes
//! the interface. The names are alternative names of a TAP of the machine, so they end with it.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, Prop};

use super::Network;
use super::inventory::Link;

/// How many of the names are taken, `eth0` and on. Docker counts on with each network.
const NAMES: u32 = 16;

impl Network {
    /// Takes the names that engines give interfaces, or sets them free again.
    pub fn reserve_names(&mut self, is_full: bool) {
        let holder = self.nics.first().map(|nic| nic.tap.index);
        let Some(index) = holder.filter(|_| self.has_reserved_names != is_full) else {
            return;
        };
        self.has_reserved_names = is_full;
        for number in 0..NAMES {
            let name = Prop::AltIfName(format!("eth{number}"));
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::PropList(vec![name])];
            let message = match is_full {
                true => RouteNetlinkMessage::NewLinkProp(message),
                false => RouteNetlinkMessage::DelLinkProp(message),
            };
            // An interface may have the name, and kernels before 5.5 have no such names.
            if let Err(error) = self.netlink.change(message, 0) {
                tracing::debug!("eth{number} is not reserved: {error}");
            }
        }
    }

    /// Deletes an interface that came all the same, and that the machine has no room for, so that
    /// nobody takes it for the container's. One that the kernel does not delete, such as a physical
    /// one, stays without effect.
    pub fn turn_away(&mut self, link: &Link) {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let deleted = self
            .netlink
            .change(RouteNetlinkMessage::DelLink(message), 0);
        if let Err(error) = deleted {
            tracing::warn!("the interface {} stays: {error}", link.name);
        }
    }
}
