//! The machine's NICs and the interfaces that they serve.
//!
//! A NIC serves one interface or is idle. An idle NIC waits for an interface that is added
//! after the start, or has lost its interface.

use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use super::inventory::{Inventory, Link, Mac};
use super::tap::{Tap, TapName};
use super::{Network, NetworkError, host_dns, redirect};

/// How many NICs a machine can have at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicLimits {
    pub max: usize,
    /// Idle NICs in a new namespace, which a container engine fills later, for machines without
    /// hotplug of NICs.
    pub idle: usize,
}

/// What an engine needs to give the machine a NIC.
#[derive(Debug)]
pub struct NicBackend {
    pub tap: File,
    pub mac: Mac,
}

/// A NIC of a machine that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedCard {
    /// Its own address.
    pub mac: Mac,
    /// The name of the interface that it served, if it served one.
    pub link: Option<String>,
}

/// A NIC of the machine.
#[derive(Debug)]
pub struct Nic {
    pub(super) tap: Tap,
    mac: Mac,
    serves: Option<Served>,
}

#[derive(Debug)]
struct Served {
    index: u32,
    name: String,
    mtu: u32,
}

impl Network {
    /// Adds a NIC for every interface, for a machine that is about to start.
    pub fn initial_nics(
        &mut self,
        found: &Inventory,
        limits: NicLimits,
    ) -> Result<Vec<NicBackend>, NetworkError> {
        if found.links.len() > limits.max {
            return Err(NetworkError::TooManyInterfaces {
                room: limits.max,
                found: found.links.len(),
            });
        }
        let mut nics = Vec::new();
        for link in &found.links {
            nics.push(self.add_nic(link)?);
        }
        if self.is_new && found.links.is_empty() {
            for _ in 0..limits.idle {
                nics.push(self.add_idle_nic(self.unused_mac())?);
            }
        }
        Ok(nics)
    }

    /// Adds the NICs of a machine that was saved, each for the interface of its name, or else for
    /// one that no other NIC is for. One that is left over is idle.
    pub fn saved_nics(
        &mut self,
        found: &Inventory,
        saved: &[SavedCard],
    ) -> Result<Vec<NicBackend>, NetworkError> {
        let named = |card: &SavedCard, link: &Link| card.link.as_deref() == Some(&link.name);
        let mut others = found
            .links
            .iter()
            .filter(|link| !saved.iter().any(|card| named(card, link)));
        let mut nics = Vec::new();
        for card in saved {
            let own = found.links.iter().find(|link| named(card, link));
            nics.push(match own.or_else(|| others.next()) {
                Some(link) => self.add_nic_with(card.mac, link)?,
                None => self.add_idle_nic(card.mac)?,
            });
        }
        Ok(nics)
    }

    /// The machine's NICs, to be saved.
    pub fn cards(&self) -> Vec<SavedCard> {
        let saved = self.nics.iter().map(|nic| SavedCard {
            mac: nic.mac,
            link: nic.serves.as_ref().map(|served| served.name.clone()),
        });
        saved.collect()
    }

    /// The NIC that serves an interface.
    pub fn nic_of(&self, index: u32) -> Option<Mac> {
        let serves = |nic: &&Nic| nic.serves.as_ref().is_some_and(|of| of.index == index);
        self.nics.iter().find(serves).map(|nic| nic.mac)
    }

    /// The interfaces that no NIC serves.
    pub fn unserved<'found>(&self, found: &'found Inventory) -> Vec<&'found Link> {
        let unserved = |link: &&Link| self.nic_of(link.index).is_none();
        found.links.iter().filter(unserved).collect()
    }

    /// The NICs that serve no interface.
    pub fn idle_nics(&self) -> Vec<Mac> {
        let idle = self.nics.iter().filter(|nic| nic.serves.is_none());
        idle.map(|nic| nic.mac).collect()
    }

    /// Adds a NIC for an interface. The caller plugs it into the machine.
    pub fn add_nic(&mut self, link: &Link) -> Result<NicBackend, NetworkError> {
        self.add_nic_with(self.mac_for(link), link)
    }

    fn add_nic_with(&mut self, mac: Mac, link: &Link) -> Result<NicBackend, NetworkError> {
        let (tap, file) = self
            .create_tap(TapName::Link(link.index))
            .map_err(|error| refused(link, "make a TAP")(error))?;
        self.nics.push(Nic {
            tap,
            mac,
            serves: None,
        });
        let last = self.nics.len() - 1;
        if let Err(error) = self.connect(last, link) {
            self.nics.truncate(last);
            return Err(error);
        }
        Ok(NicBackend { tap: file, mac })
    }

    /// Assigns an idle NIC to an interface. False if no NIC is idle.
    pub fn reuse_idle_nic(&mut self, link: &Link) -> Result<bool, NetworkError> {
        let Some(idle) = self.nics.iter().position(|nic| nic.serves.is_none()) else {
            return Ok(false);
        };
        self.nics[idle]
            .tap
            .rename(&mut self.netlink, TapName::Link(link.index))
            .map_err(|error| refused(link, "name the TAP")(error))?;
        self.connect(idle, link).map(|()| true)
    }

    /// Releases the NICs of interfaces that are gone, and applies changed MTUs.
    pub fn sync(&mut self, found: &Inventory) -> Result<(), NetworkError> {
        for position in 0..self.nics.len() {
            let Some(served) = &self.nics[position].serves else {
                continue;
            };
            match found.links.iter().find(|link| link.index == served.index) {
                None => self.release(position)?,
                Some(link) if link.mtu != served.mtu => {
                    let nic = &mut self.nics[position];
                    nic.tap
                        .set_mtu(&mut self.netlink, link.mtu)
                        .map_err(|error| refused(link, "resize the TAP")(error))?;
                    nic.serves = Some(Served::from(link));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Removes a NIC that was unplugged from the machine or could not be plugged.
    pub fn remove_nic(&mut self, mac: Mac) {
        if let Some(position) = self.nics.iter().position(|nic| nic.mac == mac) {
            let nic = self.nics.remove(position);
            if let Some(served) = nic.serves {
                self.disconnect(&served);
            }
        }
    }

    fn add_idle_nic(&mut self, mac: Mac) -> Result<NicBackend, NetworkError> {
        let (tap, tap_file) = self.create_idle_tap().map_err(super::failed("set up"))?;
        self.nics.push(Nic {
            tap,
            mac,
            serves: None,
        });
        Ok(NicBackend { tap: tap_file, mac })
    }

    fn create_tap(&self, name: TapName) -> io::Result<(Tap, File)> {
        self.namespace.within(|| Tap::create(name))?
    }

    /// Other sandboxes may have idle TAPs in the same namespace.
    fn create_idle_tap(&self) -> io::Result<(Tap, File)> {
        const ATTEMPTS: u32 = 1000;
        for number in 0..ATTEMPTS {
            match self.create_tap(TapName::Idle(number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The interface's own address, so that the guest's NIC keeps it as its permanent address. Two
    /// interfaces of a namespace may share an address, two NICs must not.
    fn mac_for(&self, link: &Link) -> Mac {
        match self.nics.iter().any(|nic| nic.mac == link.mac) {
            true => self.unused_mac(),
            false => link.mac,
        }
    }

    fn unused_mac(&self) -> Mac {
        // A locally administered address.
        let made = (0..=u8::MAX).map(|number| [0x02, b'r', b'v', b'm', 0, number]);
        let mut unused = made.filter(|mac| self.nics.iter().all(|nic| nic.mac != *mac));
        unused.next().unwrap_or_default()
    }

    fn connect(&mut self, position: usize, link: &Link) -> Result<(), NetworkError> {
        let nic = &mut self.nics[position];
        let tap = nic.tap.index;
        nic.tap
            .set_up(&mut self.netlink, link.mtu)
            .map_err(|error| refused(link, "bring the TAP up")(error))?;
        for (from, to) in [(link.index, tap), (tap, link.index)] {
            redirect::start(&mut self.netlink, from, to).map_err(|error| {
                refused(
                    link,
                    "redirect packets with tc, which needs cls_u32 and act_mirred",
                )(error)
            })?;
        }
        nic.serves = Some(Served::from(link));
        if self.passes_host_dns {
            host_dns::add_filters(&mut self.netlink, link.index, tap)
                .map_err(|error| refused(link, "keep the host's host_dns")(error))?;
        }
        Ok(())
    }

    /// From now on replies to the host's DNS queries from within the namespace reach the host.
    /// Docker's embedded DNS server sends such queries.
    pub fn pass_host_dns(&mut self) -> Result<(), NetworkError> {
        if self.passes_host_dns {
            return Ok(());
        }
        self.namespace
            .within(host_dns::set_port_range)
            .and_then(|set| set)
            .map_err(super::failed("set up"))?;
        for nic in &self.nics {
            if let Some(served) = &nic.serves {
                host_dns::add_filters(&mut self.netlink, served.index, nic.tap.index)
                    .map_err(super::failed("set up"))?;
            }
        }
        self.passes_host_dns = true;
        Ok(())
    }

    fn release(&mut self, position: usize) -> Result<(), NetworkError> {
        let nic = &mut self.nics[position];
        let Some(served) = nic.serves.take() else {
            return Ok(());
        };
        tracing::info!(
            "the interface {} has left the network namespace",
            served.name
        );
        let tap = nic.tap.index;
        redirect::stop(&mut self.netlink, tap)
            .and_then(|_| nic.tap.set_down(&mut self.netlink))
            .map_err(super::failed("tidy up"))?;
        // The index in the TAP's name may be another interface's later.
        for number in 0..=u8::MAX.into() {
            match nic.tap.rename(&mut self.netlink, TapName::Idle(number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map_err(super::failed("tidy up")),
            }
        }
        Ok(())
    }

    fn disconnect(&mut self, served: &Served) {
        if let Err(error) = redirect::remove(&mut self.netlink, served.index) {
            tracing::warn!("cannot disconnect the interface {}: {error}", served.name);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for nic in std::mem::take(&mut self.nics) {
            if let Some(served) = nic.serves {
                self.disconnect(&served);
            }
        }
    }
}

impl From<&Link> for Served {
    fn from(link: &Link) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
        }
    }
}

fn refused(link: &Link, action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    let link = link.name.clone();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => NetworkError::Taken(link),
        _ => NetworkError::Connect {
            link,
            action,
            source,
        },
    }
}
