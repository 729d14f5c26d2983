//! The slots of a running machine that hold network cards, or into which cards can be plugged.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rvm_protocol::vmm::Rates;

use crate::bus::{Bus, BusError};
use crate::kvm::Vm;
use crate::virtio::net::{Net, QUEUE_SIZES};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A network card could not be plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the request came without a TAP")]
    NoTap,
    #[error("there are {0} network cards, and no slot is left for another")]
    NoFreeSlot(usize),
    #[error("there is no such network card")]
    UnknownCard,
    #[error("cannot limit the network card")]
    Card(#[source] io::Error),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The slots for network cards, in the order of their numbers.
pub struct NetSlots {
    /// The number of the first slot.
    first: usize,
    cards: Vec<Option<Mac>>,
    rates: Rates,
}

impl NetSlots {
    /// The slots from `first` on, with the cards that they have. Others have these rates, too.
    pub fn new(first: usize, cards: Vec<Option<Mac>>, rates: Rates) -> Self {
        Self {
            first,
            cards,
            rates,
        }
    }

    /// The cards by their slots.
    pub fn cards(&self) -> &[Option<Mac>] {
        &self.cards
    }

    /// Plugs a card with this MAC address and TAP into an empty slot.
    pub fn plug(
        &mut self,
        vm: &Vm,
        bus: &Bus,
        mac: Mac,
        tap: Option<OwnedFd>,
    ) -> Result<(), NetError> {
        let tap = tap.ok_or(NetError::NoTap)?;
        let index = self
            .find(None)
            .ok_or(NetError::NoFreeSlot(self.cards.len()))?;
        let card = Net::new(File::from(tap), mac, &self.rates).map_err(NetError::Card)?;
        bus.plug(vm, self.first + index, Box::new(card))?;
        self.cards[index] = Some(mac);
        Ok(())
    }

    /// Unplugs the card with this MAC address.
    pub fn unplug(&mut self, bus: &Bus, mac: Mac) -> Result<(), NetError> {
        let index = self.find(Some(mac)).ok_or(NetError::UnknownCard)?;
        bus.unplug(self.first + index, QUEUE_SIZES)?;
        self.cards[index] = None;
        Ok(())
    }

    fn find(&self, card: Option<Mac>) -> Option<usize> {
        self.cards.iter().position(|present| *present == card)
    }
}
