//! The slots of a running machine that network cards are in, or can be plugged into.

use std::fs::File;
use std::os::fd::OwnedFd;

use crate::bus::Bus;
use crate::kvm::Vm;
use crate::machine::{MachineError, Place, connect};
use crate::virtio::empty::Empty;
use crate::virtio::net::{Net, QUEUE_SIZES};

/// A MAC address.
type Mac = [u8; 6];

/// A request about network cards that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The request came without its descriptor.
    #[error("the request came without a TAP")]
    NoTap,
    /// All slots are in use.
    #[error("there are {0} network cards, and no slot is left for another")]
    Full(usize),
    /// There is none like it.
    #[error("there is no such network card")]
    Unknown,
    /// KVM or the device.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// The slots, in the order of their places on the bus.
pub struct NetSlots(Vec<NetSlot>);

struct NetSlot {
    /// Its number on the bus.
    number: usize,
    place: Place,
    /// Whether its interrupt and bells are connected; they stay so.
    connected: bool,
    card: Option<Mac>,
}

impl NetSlots {
    /// The slots on the bus from `first` on: those of the machine's own cards, then empty ones.
    pub fn new(first: usize, cards: impl Iterator<Item = Mac>, places: &[Place]) -> Self {
        let cards = cards.map(Some).chain(std::iter::repeat(None));
        let slots = (first..).zip(places.iter().skip(first)).zip(cards);
        let slot = |((number, place), card): ((usize, &Place), Option<Mac>)| NetSlot {
            number,
            place: *place,
            connected: card.is_some(),
            card,
        };
        Self(slots.map(slot).collect())
    }

    /// Makes a card of a TAP.
    pub fn plug(
        &mut self,
        vm: &Vm,
        bus: &Bus,
        mac: Mac,
        tap: Option<OwnedFd>,
    ) -> Result<(), NetError> {
        let tap = tap.ok_or(NetError::NoTap)?;
        let full = NetError::Full(self.0.len());
        let slot = self.0.iter_mut().find(|slot| slot.card.is_none());
        let slot = slot.ok_or(full)?;
        let mut transport = bus.device(slot.number).ok_or(NetError::Unknown)?;
        if !slot.connected {
            connect(vm, transport.slot(), slot.place)?;
            slot.connected = true;
        }
        transport
            .replace(Box::new(Net::new(File::from(tap), mac)))
            .map_err(MachineError::from)?;
        slot.card = Some(mac);
        Ok(())
    }

    /// Removes a card.
    pub fn unplug(&mut self, bus: &Bus, mac: Mac) -> Result<(), NetError> {
        let slot = self.0.iter_mut().find(|slot| slot.card == Some(mac));
        let slot = slot.ok_or(NetError::Unknown)?;
        let mut transport = bus.device(slot.number).ok_or(NetError::Unknown)?;
        transport
            .replace(Box::new(Empty(QUEUE_SIZES)))
            .map_err(MachineError::from)?;
        slot.card = None;
        Ok(())
    }
}
