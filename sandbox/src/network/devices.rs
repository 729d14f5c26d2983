//! `linux.netDevices`: interfaces of the host that are moved into the container's network
//! namespace, where the machine gets them like all others. See config-linux.md of the runtime
//! specification, "Network Devices".

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use oci_spec::runtime::LinuxNetDevice;

use super::inventory::why_not_for_guest;
use super::netlink::Netlink;
use super::{Network, NetworkError};

/// The most bytes of an interface's name: IFNAMSIZ, less the final zero.
const MAX_NAME: usize = 15;

/// The end of a name that the kernel replaces by a number.
const TEMPLATE: &str = "%d";

/// Interfaces by their names on the host, with the names that they get.
pub type Devices = BTreeMap<String, String>;

/// Reads them. Fails with the interface's name, and the reason.
pub fn parse(devices: &HashMap<String, LinuxNetDevice>) -> Result<Devices, (String, String)> {
    let mut parsed = Devices::new();
    for (host, device) in devices {
        let name = device.name().as_ref().filter(|name| !name.is_empty());
        let name = name.unwrap_or(host);
        for name in [host, name] {
            if !is_name(name.strip_suffix(TEMPLATE).unwrap_or(name)) || name.len() > MAX_NAME {
                return Err((host.clone(), format!("has no valid name: {name:?}")));
            }
        }
        let is_taken = parsed.values().any(|other| other == name) && !name.ends_with(TEMPLATE);
        if is_taken {
            return Err((host.clone(), format!("repeats the name {name}")));
        }
        parsed.insert(host.clone(), name.clone());
    }
    Ok(parsed)
}

/// As the kernel's dev_valid_name().
fn is_name(name: &str) -> bool {
    let is_bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c == '\0';
    !name.is_empty() && name != "." && name != ".." && !name.contains(is_bad)
}

impl Network {
    /// Moves interfaces from the calling thread's network namespace into this one. An interface
    /// keeps its permanent addresses of global scope, and is up afterwards.
    pub fn take_devices(
        &mut self,
        devices: &HashMap<String, LinuxNetDevice>,
    ) -> Result<(), NetworkError> {
        let failed = |host: &String| {
            let device = host.clone();
            move |source| NetworkError::Device { device, source }
        };
        let devices =
            parse(devices).map_err(|(host, reason)| failed(&host)(io::Error::other(reason)))?;
        for (host, name) in &devices {
            let moved = Netlink::open().and_then(|mut outside| self.take(&mut outside, host, name));
            moved.map_err(failed(host))?;
        }
        Ok(())
    }

    fn take(&mut self, outside: &mut Netlink, host: &str, name: &str) -> io::Result<()> {
        let link = links(outside)?
            .into_iter()
            .find(|link| name_of(link) == Some(host));
        let link = link.ok_or_else(|| refused("there is no such interface"))?;
        if let Some(reason) = why_not_for_guest(&link) {
            return Err(refused(reason));
        }
        let addresses = permanent_addresses(outside, link.header.index)?;
        let before = links(&mut self.netlink)?;
        if before.iter().any(|link| name_of(link) == Some(name)) {
            return Err(refused(
                "the container's network namespace has one of that name",
            ));
        }
        let namespace = LinkAttribute::NetNsFd(self.namespace.as_fd().as_raw_fd());
        let rename = LinkAttribute::IfName(name.to_owned());
        set(
            outside,
            link.header.index,
            LinkFlags::empty(),
            vec![namespace, rename],
        )?;
        let before: HashSet<u32> = before.iter().map(|link| link.header.index).collect();
        let after = links(&mut self.netlink)?;
        let mut moved = after.iter().map(|link| link.header.index);
        let moved = moved.find(|index| !before.contains(index));
        let index = moved.ok_or_else(|| refused("it is not where it was moved to"))?;
        for mut address in addresses {
            address.header.index = index;
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            self.netlink
                .change(RouteNetlinkMessage::NewAddress(address), flags)?;
        }
        set(&mut self.netlink, index, LinkFlags::Up, Vec::new())
    }
}

fn refused(reason: &'static str) -> io::Error {
    io::Error::other(reason)
}

fn links(netlink: &mut Netlink) -> io::Result<Vec<LinkMessage>> {
    let list = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    };
    Ok(list.into_iter().filter_map(link).collect())
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// The addresses that the specification says are kept, as they are added anew.
fn permanent_addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<AddressMessage>> {
    let list = netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let address = |message| match message {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    };
    let is_kept = |address: &AddressMessage| {
        let is_permanent = address.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Flags(flags)
                if flags.contains(AddressFlags::Permanent))
        });
        address.header.index == index
            && address.header.scope == AddressScope::Universe
            && is_permanent
    };
    let kept = list.into_iter().filter_map(address).filter(is_kept);
    Ok(kept.map(without_state).collect())
}

/// Leaves the label, which has the old name, and the ages.
fn without_state(mut address: AddressMessage) -> AddressMessage {
    address.attributes.retain(|attribute| {
        use AddressAttribute::{Address, Broadcast, Flags, Local};
        matches!(attribute, Address(_) | Local(_) | Broadcast(_) | Flags(_))
    });
    address
}

fn set(
    netlink: &mut Netlink,
    index: u32,
    flags: LinkFlags,
    attributes: Vec<LinkAttribute>,
) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = flags;
    message.header.change_mask = flags;
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(devices: Value) -> Result<Devices, (String, String)> {
        parse(&serde_json::from_value(devices).unwrap())
    }

    #[test]
    fn an_interface_keeps_its_name_or_gets_one() {
        let devices = json!({ "eth0": {}, "eno1": { "name": "net0" }, "a": { "name": "x%d" } });
        let expected = [("a", "x%d"), ("eno1", "net0"), ("eth0", "eth0")];
        let expected = expected.map(|(host, name)| (host.to_owned(), name.to_owned()));
        assert_eq!(parsed(devices).unwrap(), Devices::from(expected));
        let several = json!({ "a": { "name": "eth%d" }, "b": { "name": "eth%d" } });
        assert_eq!(parsed(several).unwrap().len(), 2);
    }

    #[test]
    fn names_that_the_kernel_does_not_take_are_refused() {
        for name in [
            "a/b",
            "..",
            "a b",
            "%d",
            "a%db",
            "sixteen-bytes-xx",
            "a:1",
            "a%s",
        ] {
            let (host, reason) = parsed(json!({ "eth0": { "name": name } })).unwrap_err();
            assert!(
                host == "eth0" && reason.contains("no valid name"),
                "{reason}"
            );
        }
        let twice = json!({ "a": { "name": "eth0" }, "b": { "name": "eth0" } });
        assert!(parsed(twice).unwrap_err().1.contains("repeats"));
    }
}
