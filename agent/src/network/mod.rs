//! The guest's network, as the host asks for it (ConfigureNetwork).
//!
//! A request says all that there is to be. What an earlier one asked for and the new one does not
//! is taken away; what containers have made themselves is left alone. The network is the guest's
//! own: containers on their own and pods have no other.

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

/// A MAC address.
pub type Mac = [u8; 6];

/// The network cannot be as the host asks.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call failed.
    #[error("cannot {0}")]
    Os(#[from] OsError),
    /// No slot of the machine has the card.
    #[error("the machine has no network card {}", Text(.0))]
    NoCard(Mac),
    /// The request is not understood.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
}

fn failed(action: &'static str, what: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let action = format!("{action} {what}");
    move |error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        OsError { action, errno }.into()
    }
}

/// A MAC address as people write it.
struct Text<'mac>(&'mac Mac);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// What the host has asked for so far.
pub struct Network {
    reaper: Reaper,
    cards: Cards,
    /// The end of a process that puts cards away.
    pending: Option<oneshot::Receiver<Exit>>,
    /// Nothing was asked for yet.
    is_new: bool,
    interfaces: Vec<Interface>,
    /// By kind.
    objects: [Vec<Object>; Kind::ALL.len()],
}

impl Network {
    /// A network of loopback only.
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
    /// The first time, cards may still be on their way out of sight when this returns; see
    /// [`Network::settle`]. Later the host may take them out of the machine.
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
        let put_away = self.apply(request, &wanted)?;
        self.pending = put_away.map(|pid| self.reaper.expect(pid));
        if !std::mem::replace(&mut self.is_new, false) {
            self.settle().await;
        }
        Ok(())
    }

    /// Returns when everything is as it was asked for.
    pub async fn settle(&mut self) {
        if let Some(end) = self.pending.take()
            && !end.await.is_ok_and(|exit| exit.status == 0)
        {
            log::warn!("a network card could not be put away");
        }
    }

    /// Does all but putting the cards away that are no longer wanted, which it starts.
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
        self.make_way(&netlink, &request.interfaces)?;
        let put_away = self.cards.put_away_all_but(wanted)?;
        self.set_interfaces(&netlink, request.interfaces)?;
        for (kind, list) in Kind::ALL.into_iter().zip(objects) {
            self.add(&netlink, kind, list)?;
        }
        Ok(put_away)
    }

    /// The objects of a request, with the interfaces that they name.
    fn resolve(
        &self,
        request: &ConfigureNetworkRequest,
    ) -> Result<[Vec<Object>; Kind::ALL.len()], NetworkError> {
        let index = |name: &str| match name {
            "" => Ok(0),
            // Always the first.
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
        // What was made last may need what was made first.
        while let Some(position) = list.iter().rposition(|object| !wanted.contains(object)) {
            let object = list.remove(position);
            match netlink.request(object.removal()) {
                // It went with its interface, or a container has removed it.
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

    /// Takes the names that interfaces are to have from others that have them.
    fn make_way(&mut self, netlink: &Netlink, wanted: &[Interface]) -> Result<(), NetworkError> {
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
        message.nested(libc::IFLA_AF_SPEC, no_addresses_of_its_own);
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
                // An interface for packets smaller than IPv6's has no settings for it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(failed("write", &path))?,
            }
        }

        let header = link_header(index, Some(interface.flags));
        let message = Message::new(libc::RTM_SETLINK, 0, &header);
        netlink.request(message).doing(|| doing("flags"))?;
        // The kernel lets up to a second pass before it finds that a new card can send, and says so
        // at once to whoever asks.
        let _ = fs::read(format!("/sys/class/net/{}/carrier", interface.name));
        Ok(())
    }
}

fn card_of(interface: &Interface) -> Result<Mac, NetworkError> {
    let mac = interface.card.as_slice().try_into();
    mac.map_err(|_| NetworkError::Malformed("a MAC address has six bytes"))
}

/// The flags that the host decides; see netdevice(7).
const FLAGS: u32 =
    (libc::IFF_UP | libc::IFF_NOARP | libc::IFF_PROMISC | libc::IFF_ALLMULTI | libc::IFF_MULTICAST)
        as u32;

/// struct ifinfomsg, with the flags that are to be set.
fn link_header(index: u32, flags: Option<u32>) -> [u8; 16] {
    let change = flags.map_or(0, |_| FLAGS);
    let flags = flags.map_or(0, |flags| flags & FLAGS);
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// The host says which addresses there are, that of the link included.
fn no_addresses_of_its_own(message: &mut Message) {
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
