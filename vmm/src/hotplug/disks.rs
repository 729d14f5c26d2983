//! The slots of a running machine into which disks are plugged.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rvm_protocol::vmm::{DISK_SLOT, DiskConfig, Rate};

use super::mapped_disks::{Mapped, MappedDisks};
use super::memory::HotplugMemoryError;
use crate::bus::{Bus, BusError};
use crate::kvm::Vm;
use crate::memory::{CurrentMemory, GuestMemory};
use crate::virtio::block::{Block, QUEUE_SIZES};
use crate::virtio::device::VirtioDevice;
use crate::virtio::pmem::Pmem;

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
    #[error("cannot map the disk")]
    Map(#[from] HotplugMemoryError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The slots for disks, from [`DISK_SLOT`] on.
pub struct DiskSlots {
    /// Whether there is a disk in each.
    occupied: Vec<bool>,
    rate: Rate,
    /// None if disks are not mapped.
    mapped: Option<MappedDisks>,
}

impl DiskSlots {
    /// Empty slots for disks of this rate. One that is mapped would have none.
    pub fn new(count: usize, rate: Rate, mapped: Option<MappedDisks>) -> Self {
        Self {
            occupied: vec![false; count],
            rate,
            mapped: mapped.filter(|_| rate == Rate::default()),
        }
    }

    /// Plugs a disk into an empty slot.
    pub fn plug(
        &mut self,
        (vm, bus, memory): (&Vm, &Bus, &CurrentMemory),
        slot: usize,
        file: Option<OwnedFd>,
        config: &DiskConfig,
    ) -> Result<(), DiskError> {
        let file = File::from(file.ok_or(DiskError::NoFile)?);
        let device = self.device((vm, memory), slot, file, config)?;
        if let Err(error) = bus.plug(vm, slot, device) {
            self.remove((vm, memory), slot)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// The device for a slot that is empty, and is not from now on.
    pub fn device(
        &mut self,
        (vm, memory): (&Vm, &CurrentMemory),
        slot: usize,
        file: File,
        config: &DiskConfig,
    ) -> Result<Box<dyn VirtioDevice>, DiskError> {
        let index = self.find(slot, false)?;
        let mapped = match &mut self.mapped {
            Some(mapped) if config.layer && config.read_only => {
                mapped.map(index, &file, (vm, memory))?
            }
            _ => None,
        };
        let device: Box<dyn VirtioDevice> = match mapped {
            Some(Mapped { range, bytes }) => Box::new(Pmem::new(file, bytes, &range)),
            None => Box::new(Block::new(file, config, &self.rate).map_err(DiskError::Disk)?),
        };
        self.occupied[index] = true;
        Ok(device)
    }

    /// Empties a slot, and closes the disk's file. Waits for a request that is being executed.
    pub fn unplug(
        &mut self,
        (vm, bus, memory): (&Vm, &Bus, &CurrentMemory),
        slot: usize,
    ) -> Result<(), DiskError> {
        self.find(slot, true)?;
        bus.unplug(slot, QUEUE_SIZES)?;
        self.remove((vm, memory), slot)
    }

    /// The guest's memory without the disks, which a checkpoint does not hold.
    pub fn remove_from(&self, memory: Arc<GuestMemory>) -> Arc<GuestMemory> {
        match &self.mapped {
            Some(mapped) => mapped.remove_from(memory),
            None => memory,
        }
    }

    fn remove(&mut self, machine: (&Vm, &CurrentMemory), slot: usize) -> Result<(), DiskError> {
        let index = self.find(slot, true)?;
        self.occupied[index] = false;
        if let Some(mapped) = &mut self.mapped {
            mapped.unmap(index, machine)?;
        }
        Ok(())
    }

    /// The index of a slot that is occupied, or is not.
    fn find(&self, slot: usize, occupied: bool) -> Result<usize, DiskError> {
        let index = slot.checked_sub(DISK_SLOT);
        let found = index.and_then(|index| Some((index, *self.occupied.get(index)?)));
        match found.ok_or(DiskError::NoSlot(slot))? {
            (index, is) if is == occupied => Ok(index),
            (_, true) => Err(DiskError::Occupied(slot)),
            (_, false) => Err(DiskError::Empty(slot)),
        }
    }
}
