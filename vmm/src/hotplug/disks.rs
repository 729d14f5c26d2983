//! The slots of a running machine into which disks are plugged.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rvm_protocol::vmm::{DISK_SLOT, DiskConfig, Rate};

use crate::bus::{Bus, BusError};
use crate::kvm::Vm;
use crate::virtio::block::{Block, QUEUE_SIZES};

/// A disk could not be plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("the request came without a disk")]
    NoFile,
    #[error("slot {0} is none for disks")]
    NoSlot(usize),
    #[error("there is a disk in slot {0} already")]
    Occupied(usize),
    #[error("there is no disk in slot {0}")]
    Empty(usize),
    #[error("cannot use the disk")]
    Disk(#[source] io::Error),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The slots for disks, from [`DISK_SLOT`] on.
pub struct DiskSlots {
    /// Whether there is a disk in each.
    occupied: Vec<bool>,
    rate: Rate,
}

impl DiskSlots {
    /// Slots for disks of this rate, with whether there is one in each.
    pub fn new(occupied: Vec<bool>, rate: Rate) -> Self {
        Self { occupied, rate }
    }

    /// Plugs a disk into an empty slot.
    pub fn plug(
        &mut self,
        (vm, bus): (&Vm, &Bus),
        slot: usize,
        file: Option<OwnedFd>,
        config: &DiskConfig,
    ) -> Result<(), DiskError> {
        let file = File::from(file.ok_or(DiskError::NoFile)?);
        let rate = self.rate;
        let occupied = self.find(slot)?;
        if *occupied {
            return Err(DiskError::Occupied(slot));
        }
        let disk = Block::new(file, config, &rate).map_err(DiskError::Disk)?;
        bus.plug(vm, slot, Box::new(disk))?;
        *occupied = true;
        Ok(())
    }

    /// Empties a slot, and closes the disk's file. Waits for a request that is being executed.
    pub fn unplug(&mut self, bus: &Bus, slot: usize) -> Result<(), DiskError> {
        let occupied = self.find(slot)?;
        if !*occupied {
            return Err(DiskError::Empty(slot));
        }
        bus.unplug(slot, QUEUE_SIZES)?;
        *occupied = false;
        Ok(())
    }

    fn find(&mut self, slot: usize) -> Result<&mut bool, DiskError> {
        let index = slot.checked_sub(DISK_SLOT);
        let found = index.and_then(|index| self.occupied.get_mut(index));
        found.ok_or(DiskError::NoSlot(slot))
    }
}
