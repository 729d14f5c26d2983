//! Memory that a machine is given while it runs: a stretch of the address space above all that it
//! starts with, of which a part from its beginning is memory at a time.
//!
//! Nothing of it is there until it is first needed. Beyond the part that the host has granted,
//! neither the guest nor a device on its behalf reaches anything.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestRegionCollectionError, GuestRegionMmap};

use crate::kvm::{KvmError, Vm};
use crate::memory::{CurrentMemory, HIGH_MEMORY_START};
use crate::reserved::Reserved;

/// Guests add memory in pieces of this size, or of [`LARGE_EXTENT`] if they have much.
const EXTENT: u64 = 128 << 20;

/// See [`EXTENT`]; MAX_BLOCK_SIZE in Linux's arch/x86/mm/init_64.c.
const LARGE_EXTENT: u64 = 2 << 30;

/// How much memory, in MiB, makes guests use [`LARGE_EXTENT`].
const MUCH_MIB: u64 = 64 << 10;

/// The first of KVM's memory slots that are used here. A machine starts with two at most.
const FIRST_SLOT: u32 = 8;

/// Memory could not be added.
#[derive(Debug, thiserror::Error)]
pub enum HotMemoryError {
    /// The kernel gave none.
    #[error("cannot map memory for the guest; the host may be short of memory")]
    Map(#[source] io::Error),
    /// The region does not suit the library.
    #[error("cannot use more memory for the guest")]
    Describe(#[source] MmapRegionError),
    /// The regions overlap.
    #[error("more memory does not fit the guest's address space")]
    Regions(#[source] GuestRegionCollectionError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The stretch.
pub struct HotMemory {
    /// Where it lies in the guest's address space.
    region: Range<u64>,
    extent: u64,
    /// Where it lies in ours, once it was needed.
    reserved: Option<Reserved>,
    /// The ends of KVM's slots, of which each begins where the one before ends.
    slots: Vec<u64>,
}

impl HotMemory {
    /// Room for a machine that starts with `boot_mib` to have `max_mib`, if its CPUs can address so
    /// much.
    pub fn new(boot_mib: u64, max_mib: u64, address_bits: u8) -> Self {
        let extent = match boot_mib {
            MUCH_MIB.. => LARGE_EXTENT,
            _ => EXTENT,
        };
        // Aligned for either, since what a guest has by then may be much.
        let start = (HIGH_MEMORY_START + (boot_mib << 20)).next_multiple_of(LARGE_EXTENT);
        let wanted = (max_mib.saturating_sub(boot_mib) << 20).next_multiple_of(extent);
        let addressable = 1_u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        let room = addressable.saturating_sub(start) / extent * extent;
        Self {
            region: start..start + wanted.min(room),
            extent,
            reserved: None,
            slots: Vec::new(),
        }
    }

    /// Where it lies.
    pub fn region(&self) -> &Range<u64> {
        &self.region
    }

    /// Bytes of it that are memory, from the beginning.
    pub fn usable(&self) -> u64 {
        self.slots.last().copied().unwrap_or(0)
    }

    /// Makes at least `bytes` of it memory, and of the rest as little as can be. Contents of what is
    /// memory no longer are lost.
    pub fn set_usable(
        &mut self,
        bytes: u64,
        vm: &Vm,
        memory: &CurrentMemory,
    ) -> Result<(), HotMemoryError> {
        let wanted = bytes.next_multiple_of(self.extent);
        let before = self.usable();
        if wanted > before {
            self.add(before..wanted, vm)?;
        } else {
            self.remove_above(wanted, vm)?;
        }
        let after = self.usable();
        if after != before {
            self.publish((before, after), memory)?;
        }
        Ok(())
    }

    fn add(&mut self, range: Range<u64>, vm: &Vm) -> Result<(), HotMemoryError> {
        let reserved = match &mut self.reserved {
            Some(reserved) => reserved,
            None => {
                let bytes = self.region.end - self.region.start;
                let reserved = Reserved::new(bytes as usize).map_err(HotMemoryError::Map)?;
                self.reserved.insert(reserved)
            }
        };
        reserved
            .make_accessible(range.end as usize)
            .map_err(HotMemoryError::Map)?;
        let number = FIRST_SLOT + self.slots.len() as u32;
        let guest = self.region.start + range.start;
        vm.add_memory(number, guest, reserved, &range)?;
        self.slots.push(range.end);
        Ok(())
    }

    /// Removes whole slots, so something may be left above.
    fn remove_above(&mut self, wanted: u64, vm: &Vm) -> Result<(), HotMemoryError> {
        while let [.., end] = self.slots[..] {
            let below = self.slots.len() - 1;
            let start = below.checked_sub(1).map_or(0, |index| self.slots[index]);
            if start < wanted || end <= wanted {
                break;
            }
            vm.remove_memory(FIRST_SLOT + below as u32)?;
            self.slots.truncate(below);
            // The guest may have touched what was not plugged. Failing costs memory alone.
            let range = start as usize..end as usize;
            let discarded = self.reserved.as_ref().map(|it| it.discard(&range));
            if let Some(Err(error)) = discarded {
                log::debug!("cannot give memory back: {error}");
            }
        }
        Ok(())
    }

    /// Lets the devices see `after` bytes in place of `before`.
    fn publish(
        &self,
        (before, after): (u64, u64),
        memory: &CurrentMemory,
    ) -> Result<(), HotMemoryError> {
        let start = GuestAddress(self.region.start);
        let mut now = memory.get().as_ref().clone();
        if before > 0 {
            (now, _) = now
                .remove_region(start, before)
                .map_err(HotMemoryError::Regions)?;
        }
        if let (1.., Some(reserved)) = (after, &self.reserved) {
            let mapping = reserved
                .region(after as usize)
                .map_err(HotMemoryError::Describe)?;
            let region = GuestRegionMmap::new(mapping, start)
                .ok_or(GuestRegionCollectionError::MemoryRegionOverlap)
                .map_err(HotMemoryError::Regions)?;
            now = now
                .insert_region(Arc::new(region))
                .map_err(HotMemoryError::Regions)?;
        }
        memory.set(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(boot_mib: u64, max_mib: u64, address_bits: u8) -> Range<u64> {
        HotMemory::new(boot_mib, max_mib, address_bits)
            .region()
            .clone()
    }

    #[test]
    fn there_is_room_for_all_that_may_come_in_pieces_that_guests_add() {
        assert_eq!(region(178, 1000, 40), 6 << 30..(6 << 30) + (896 << 20));
        let large = region(100 << 10, 103 << 10, 40);
        assert_eq!(
            (large.start % LARGE_EXTENT, large.end - large.start),
            (0, 4 << 30)
        );
        assert!(large.start >= HIGH_MEMORY_START + (100 << 30));
    }

    #[test]
    fn a_machine_that_cannot_grow_has_room_for_nothing() {
        assert!(region(512, 512, 40).is_empty());
        assert!(region(512, 128, 40).is_empty());
    }

    #[test]
    fn what_the_cpus_cannot_address_is_no_room() {
        assert_eq!(region(178, 1 << 20, 36).end, 1 << 36);
        assert!(region(1 << 20, 2 << 20, 36).is_empty());
    }
}
