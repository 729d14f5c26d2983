//! The guest's network, as the host configures it (ConfigureNetwork).
//!
//! A request holds the whole network. The agent removes what an earlier request had and the new one
//! lacks, and leaves alone what containers have made themselves. The containers of the guest share
//! this network.

mod cards;
mod objects;

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::Pid;
use rvm_protocol::agent::{ConfigureNetworkRequest, Interface};
use tokio::sync::oneshot;

use crate::process::{Exit, Reaper};
use crate::sys::netlink::{Message, Netlink};
use crate::sys::{Doing as _, OsError};
use cards::Cards;
use objects::{Kind, Object};

pub type Mac = [u8; 6];

/// Why the network cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot {0}")]
    Os(OsError),
    /// No slot of the machine has the card.
    #[error("the machine has no network card {}", Text(.0))]
    NoCard(Mac),
    #[error("malformed request: {0}")]
    Malformed(&'static str),
}

impl From<OsError> for NetworkError {
    fn from(error: OsError) -> Self {
        Self::Os(error)
    }
}

fn failed(action: &'static str, what: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = format!("{action} {what}");
    move |error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        OsError { action, errno }.into()
    }
}

/// A MAC address in the usual notation.
struct Text<'mac>(&'mac Mac);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// The network as the host has configured it so far.
pub struct Network {
    reaper: Reaper,
    cards: Cards,
    /// The exit of the process that unbinds cards.
    pending: Option<oneshot::Receiver<Exit>>,
    /// Before the first request.
    is_new: bool,
    interfaces: Vec<Interface>,
    /// By kind.
    objects: [Vec<Object>; Kind::ALL.len()],
}

impl Network {
    /// A network with the loopback interface alone.
    pub fn new(reaper: Reaper) -> Self {
        Self {
            reaper,
            cards: Cards::default(),
            pending: None,
            is_new: true,
            interfaces: Vec::new(),
            objects: Default::default(),
        }
    }

    /// Makes the network what the request says.
    ///
    /// After the first request some cards may still be bound when this returns; see
    /// [`Network::settle`]. After a later one none is: the host may unplug the cards.
    pub async fn configure(
        &mut self,
        request: ConfigureNetworkRequest,
    ) -> Result<(), NetworkError> {
        self.settle().await;
        let wanted = request
            .interfaces
            .iter()
            .map(card_of)
            .collect::<Result<Vec<_>, _>>()?;
        self.cards.find(&wanted)?;
        let unbinding = self.apply(request, &wanted)?;
        self.pending = unbinding.map(|pid| self.reaper.expect(pid));
        if !std::mem::replace(&mut self.is_new, false) {
            self.settle().await;
        }
        Ok(())
    }

    /// Waits until the cards that no interface uses are unbound.
    pub async fn settle(&mut self) {
        if let Some(end) = self.pending.take()
            && !end.await.is_ok_and(|exit| exit.status == 0)
        {
            log::warn!("a network card could not be unbound from its driver");
        }
    }

    /// Applies a request, and starts the process that unbinds the cards that are no longer wanted.
    fn apply(
        &mut self,
        request: ConfigureNetworkRequest,
        wanted: &[Mac],
    ) -> Result<Option<Pid>, NetworkError> {
        let netlink = Netlink::open().doing(|| "open a netlink socket")?;
        let objects = self.resolve(&request)?;
        for kind in Kind::ALL.into_iter().rev() {
            self.remove(&netlink, kind, &objects[kind as usize])?;
        }
        self.free_names(&netlink, &request.interfaces)?;
        let unbinding = self.cards.unbind_all_but(wanted)?;
        self.set_interfaces(&netlink, request.interfaces)?;
        for (kind, list) in Kind::ALL.into_iter().zip(objects) {
            self.add(&netlink, kind, list)?;
        }
        Ok(unbinding)
    }

    /// The objects of a request, with the indices of their interfaces.
    fn resolve(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<[Vec<Object>; Kind::ALL.len()], NetworkError> {
        let index = |name: &str| match name {
            "" => Ok(0),
            // The first interface of every network namespace.
            "lo" => Ok(1),
            name => {
                let mut interfaces = request.interfaces.iter();
                let interface = interfaces.find(|interface| interface.name == name);
                let interface = interface.ok_or(NetworkError::Malformed("unknown device"))?;
                Ok(self.cards.get(card_of(interface)?)?.index)
            }
        };
        let mut objects = <[Vec<Object>; _]>::default();
        for kind in Kind::ALL {
            let list = kind.of(request).iter();
            let list = list.map(|object| Object::resolve(kind, object, &index));
            objects[kind as usize] = list.collect::<Result<_, _>>()?;
        }
        Ok(objects)
    }

    fn remove(
        &mut self,
        netlink: &Netlink,
        kind: Kind,
        wanted: &[Object],
    ) -> Result<(), NetworkError> {
        let list = &mut self.objects[kind as usize];
        // Later objects may need earlier ones.
        while let Some(position) = list.iter().rposition(|object| !wanted.contains(object)) {
            let object = list.remove(position);
            match netlink.request(object.removal()) {
                // The kernel removed it with its interface, or a container did.
                Err(
                    Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL | Errno::NODEV | Errno::NXIO,
                ) => {}
                other => other.doing(|| format!("remove {object}"))?,
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        netlink: &Netlink,
        kind: Kind,
        wanted: Vec<Object>,
    ) -> Result<(), NetworkError> {
        let list = &mut self.objects[kind as usize];
        for object in wanted {
            if list.contains(&object) {
                continue;
            }
            match netlink.request(object.addition()) {
                Ok(()) | Err(Errno::EXIST) => list.push(object),
                other => other.doing(|| format!("add {object}"))?,
            }
        }
        Ok(())
    }

    fn set_interfaces(
        &mut self,
        netlink: &Netlink,
        wanted: Vec<Interface>,
    ) -> Result<(), NetworkError> {
        let old = std::mem::take(&mut self.interfaces);
        for interface in wanted.iter().filter(|new| !old.contains(new)) {
            self.set_interface(netlink, interface)?;
        }
        self.interfaces = wanted;
        Ok(())
    }

    /// Renames other interfaces that have the wanted names.
    fn free_names(&mut self, netlink: &Netlink, wanted: &[Interface]) -> Result<(), NetworkError> {
        for interface in wanted {
            let card = card_of(interface)?;
            let mut others = self.cards.iter_mut().filter(|other| other.mac != card);
            if let Some(other) = others.find(|other| other.name == interface.name) {
                let name = format!("rvm-{}", other.index);
                let header = link_header(other.index, None);
                let mut message = Message::new(libc::RTM_SETLINK, 0, &header);
                message.attribute(libc::IFLA_IFNAME, &with_nul(&name));
                netlink
                    .request(message)
                    .doing(|| format!("rename the interface {}", other.name))?;
                other.name = name;
            }
        }
        Ok(())
    }

    fn set_interface(
        &mut self,
        netlink: &Netlink,
        interface: &Interface,
    ) -> Result<(), NetworkError> {
        let card = card_of(interface)?;
        let index = self.cards.get(card)?.index;
        let doing = |what: &str| format!("set the {what} of the interface {}", interface.name);

        let mut message = Message::new(libc::RTM_SETLINK, 0, &link_header(index, None));
        message.attribute(libc::IFLA_IFNAME, &with_nul(&interface.name));
        message.attribute(libc::IFLA_MTU, &interface.mtu.to_ne_bytes());
        message.attribute(libc::IFLA_ADDRESS, &interface.mac);
        message.nested(libc::IFLA_AF_SPEC, no_generated_address);
        netlink
            .request(message)
            .doing(|| doing("name, address and MTU"))?;
        for card in self.cards.iter_mut().filter(|card| card.index == index) {
            card.name.clone_from(&interface.name);
        }

        for setting in &interface.settings {
            let (family, name) = (&setting.family, &setting.name);
            let path = format!("/proc/sys/net/{family}/conf/{}/{name}", interface.name);
            match fs::write(&path, setting.value.to_string()) {
                // An interface whose MTU is below IPv6's has no settings for it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(failed("write", &path))?,
            }
        }

        let header = link_header(index, Some(interface.flags));
        let message = Message::new(libc::RTM_SETLINK, 0, &header);
        netlink.request(message).doing(|| doing("flags"))?;
        // The kernel takes up to a second to notice the carrier of a new card; a read of the file
        // makes it look at once.
        let _ = fs::read(format!("/sys/class/net/{}/carrier", interface.name));
        Ok(())
    }
}

/// Puts the messages of a request together. Each has the length that it says.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check_request(request: &ConfigureNetworkRequest) {
    request
        .interfaces
        .iter()
        .for_each(|interface| _ = card_of(interface));
    let index = |name: &str| Ok(name.len() as u32);
    for kind in Kind::ALL {
        for object in kind.of(request) {
            let Ok(object) = Object::resolve(kind, object, &index) else {
                continue;
            };
            assert!(!object.to_string().is_empty());
            for message in [object.addition(), object.removal()] {
                let bytes = message.finish();
                let length = bytes
                    .first_chunk()
                    .map(|length| u32::from_ne_bytes(*length));
                assert_eq!(length, Some(bytes.len() as u32));
            }
        }
    }
}

fn card_of(interface: &Interface) -> Result<Mac, NetworkError> {
    let mac = interface.card.as_slice().try_into();
    mac.map_err(|_| NetworkError::Malformed("a MAC address has six bytes"))
}

/// The flags that the host sets; see netdevice(7).
const FLAGS: u32 =
    (libc::IFF_UP | libc::IFF_NOARP | libc::IFF_PROMISC | libc::IFF_ALLMULTI | libc::IFF_MULTICAST)
        as u32;

/// struct ifinfomsg, with flags to set.
fn link_header(index: u32, flags: Option<u32>) -> [u8; 16] {
    let change = flags.map_or(0, |_| FLAGS);
    let flags = flags.map_or(0, |flags| flags & FLAGS);
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The host sends every address, the link-local one included: the kernel generates none.
fn no_generated_address(message: &mut Message) {
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
    message.nested(libc::AF_INET6 as u16, |message| {
        message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    });
}

fn with_nul(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
