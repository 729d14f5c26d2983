//! The machine's network cards: virtio devices, bound to their driver while an interface uses them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::write;
use rustix::process::Pid;

use super::{Mac, NetworkError, failed};
use crate::slots::{self, DEVICES, DRIVER, PREFIX as SLOT};
use crate::sys::Doing as _;
use crate::sys::clone::{CloneRequest, Cloned, clone_process, exit_now};

/// A card that is bound to its driver.
#[derive(Debug)]
pub struct Card {
    /// The card's own address; the interface may have another.
    pub mac: Mac,
    /// Of the interface.
    pub index: u32,
    /// Of the interface, unless a container has renamed it.
    pub name: String,
    slot: String,
}

#[derive(Debug, Default)]
pub struct Cards(Vec<Card>);

impl Cards {
    /// Finds the cards with these addresses, and binds those that are not bound.
    pub fn find(&mut self, wanted: &[Mac]) -> Result<(), NetworkError> {
        let missing = |cards: &[Card]| {
            let absent = |mac: &&Mac| cards.iter().all(|card| card.mac != **mac);
            wanted.iter().find(absent).copied()
        };
        let slots = slots().map_err(failed("list", DEVICES))?;
        for slot in &slots {
            if !self.has(slot) {
                self.0
                    .extend(card_in(slot).map_err(failed("look at", slot))?);
            }
        }
        for slot in slots.iter().filter(|slot| !slots::is_bound(slot)) {
            if missing(&self.0).is_none() {
                break;
            }
            self.bind(slot, wanted)?;
        }
        missing(&self.0).map_or(Ok(()), |mac| Err(NetworkError::NoCard(mac)))
    }

    /// Starts a process that unbinds every card that is not among these; returns its id, or `None`
    /// if there is no such card.
    ///
    /// It takes some 50 ms a card: the kernel waits for an RCU grace period of the interface.
    pub fn unbind_all_but(&mut self, wanted: &[Mac]) -> Result<Option<Pid>, NetworkError> {
        let idle = self.0.extract_if(.., |card| !wanted.contains(&card.mac));
        let slots: Vec<String> = idle.map(|card| card.slot).collect();
        if slots.is_empty() {
            return Ok(None);
        }
        let path = format!("{DRIVER}/unbind");
        let unbind = File::options().write(true).open(&path);
        start_unbinding(&unbind.map_err(failed("open", &path))?, &slots).map(Some)
    }

    pub fn get(&self, mac: Mac) -> Result<&Card, NetworkError> {
        let card = self.0.iter().find(|card| card.mac == mac);
        card.ok_or(NetworkError::NoCard(mac))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Card> {
        self.0.iter_mut()
    }

    fn has(&self, slot: &str) -> bool {
        self.0.iter().any(|card| card.slot == slot)
    }

    /// Binds a slot, and leaves it bound if it holds a wanted card.
    fn bind(&mut self, slot: &str, wanted: &[Mac]) -> Result<(), NetworkError> {
        match slots::bind(slot) {
            // The slot is empty.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            other => other.map_err(failed("bind", slot))?,
        }
        match card_in(slot).map_err(failed("look at", slot))? {
            Some(card) if wanted.contains(&card.mac) => self.0.push(card),
            Some(_) => slots::unbind(slot).map_err(failed("unbind", slot))?,
            // A device of another kind: it stays bound.
            None => {}
        }
        Ok(())
    }
}

fn start_unbinding(unbind: &File, slots: &[String]) -> Result<Pid, NetworkError> {
    // SAFETY: the child makes system calls only.
    #[allow(unsafe_code)]
    let cloned = unsafe { clone_process(&CloneRequest::default()) };
    match cloned.doing(|| "clone the agent")? {
        Cloned::Parent { pid, .. } => Ok(pid),
        Cloned::Child => {
            let mut written = slots.iter().map(|slot| write(unbind, slot.as_bytes()));
            exit_now(i32::from(written.any(|result| result.is_err())))
        }
    }
}

/// The names of all slots, by number.
fn slots() -> io::Result<Vec<String>> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        let name = entry?.file_name();
        slots.extend(
            name.to_str()
                .filter(|name| name.starts_with(SLOT))
                .map(str::to_owned),
        );
    }
    slots.sort_by_key(|slot| slot[SLOT.len()..].parse().unwrap_or(u32::MAX));
    Ok(slots)
}

/// The card in a slot, if there is one and it is bound. Its interface still has the card's own
/// address.
fn card_in(slot: &str) -> io::Result<Option<Card>> {
    // virtio-mmio.N/virtioM/net/NAME
    let Some(device) = find(&slots::path(slot), "virtio")? else {
        return Ok(None);
    };
    let nets = device.join("net");
    let interface = match nets.try_exists()? {
        true => find(&nets, "")?,
        false => None,
    };
    let Some(interface) = interface else {
        return Ok(None);
    };
    let name = interface.file_name().unwrap_or_default();
    Ok(Some(Card {
        mac: parse_mac(fs::read_to_string(interface.join("address"))?.trim())?,
        index: parse(fs::read_to_string(interface.join("ifindex"))?.trim())?,
        name: name.to_string_lossy().into_owned(),
        slot: slot.to_owned(),
    }))
}

fn find(directory: &Path, prefix: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let starts = |name: &str| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty())
        };
        if entry.file_name().to_str().is_some_and(starts) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn parse(text: &str) -> io::Result<u32> {
    text.parse().map_err(io::Error::other)
}

fn parse_mac(text: &str) -> io::Result<Mac> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(io::Error::other)?;
    bytes
        .try_into()
        .map_err(|_| io::Error::other("no MAC address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_read_as_the_kernel_writes_it() {
        assert_eq!(
            parse_mac("02:00:00:aa:bb:ff").unwrap(),
            [2, 0, 0, 0xaa, 0xbb, 0xff]
        );
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "x2:00:00:00:00:00",
        ] {
            assert!(parse_mac(text).is_err(), "{text}");
        }
    }
}
