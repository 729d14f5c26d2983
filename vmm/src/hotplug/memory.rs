//! Hotplug memory: a region of the guest's address space above the memory of the boot, of which a
//! part from its start is memory.
//!
//! Nothing is reserved or mapped before it is first needed. Past the part that the host has
//! granted, the guest and its devices can access nothing.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestRegionCollectionError, GuestRegionMmap};

use crate::kvm::{KvmError, MemorySlot, Vm};
use crate::memory::{CurrentMemory, HIGH_MEMORY_START, Reservation};

/// The size of the memory blocks that Linux adds as a whole: MIN_MEMORY_BLOCK_SIZE in its
/// include/linux/memory.h.
const MEMORY_BLOCK: u64 = 128 << 20;

/// The size of memory blocks in a machine of [`LARGE_MIB`] or more: MAX_BLOCK_SIZE in
/// arch/x86/mm/init_64.c.
const LARGE_MEMORY_BLOCK: u64 = 2 << 30;

/// The memory at boot, in MiB, from which on Linux uses [`LARGE_MEMORY_BLOCK`].
const LARGE_MIB: u64 = 64 << 10;

/// Hotplug memory could not be resized.
#[derive(Debug, thiserror::Error)]
pub enum HotplugMemoryError {
    #[error("cannot map memory for the guest; the host may be short of memory")]
    Map(#[source] io::Error),
    #[error("cannot use more memory for the guest")]
    Describe(#[source] MmapRegionError),
    #[error("more memory does not fit the guest's address space")]
    Regions(#[source] GuestRegionCollectionError),
    #[error("the memory that was saved does not fit what this machine can be given")]
    Saved,
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

pub struct HotplugMemory {
    /// The region in the guest's address space.
    region: Range<u64>,
    /// The size of the guest's memory blocks.
    block: u64,
    /// The region's address space in this process. None before it is first needed.
    reservation: Option<Reservation>,
    /// The ends of the memory slots, as offsets in the region. Each slot begins at the end of the
    /// one before.
    slot_ends: Vec<u64>,
}

impl HotplugMemory {
    /// The region of a machine that boots with `boot_mib` and may grow to `max_mib`, cut to what
    /// its CPUs can address.
    pub fn new(boot_mib: u64, max_mib: u64, address_bits: u8) -> Self {
        let block = match boot_mib {
            LARGE_MIB.. => LARGE_MEMORY_BLOCK,
            _ => MEMORY_BLOCK,
        };
        // Aligned for both sizes of memory blocks.
        let start = (HIGH_MEMORY_START + (boot_mib << 20)).next_multiple_of(LARGE_MEMORY_BLOCK);
        let wanted = (max_mib.saturating_sub(boot_mib) << 20).next_multiple_of(block);
        let addressable = 1_u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        let room = addressable.saturating_sub(start) / block * block;
        Self {
            region: start..start + wanted.min(room),
            block,
            reservation: None,
            slot_ends: Vec::new(),
        }
    }

    /// The region in the guest's address space.
    pub fn region(&self) -> &Range<u64> {
        &self.region
    }

    /// The end of the part that is memory, as an offset in the region.
    pub fn usable(&self) -> u64 {
        self.slot_ends.last().copied().unwrap_or(0)
    }

    /// The ends of its pieces, as offsets in the region.
    pub fn slot_ends(&self) -> &[u64] {
        &self.slot_ends
    }

    /// Adds the pieces with these ends to a machine that has none yet and has not run.
    pub fn restore(
        &mut self,
        ends: &[u64],
        vm: &Vm,
        memory: &CurrentMemory,
    ) -> Result<(), HotplugMemoryError> {
        self.check(ends)?;
        for end in ends {
            self.add(self.usable() as usize..*end as usize, vm)?;
        }
        self.publish((0, self.usable()), memory)
    }

    /// Whether pieces with these ends can be in the region.
    pub fn check(&self, ends: &[u64]) -> Result<(), HotplugMemoryError> {
        let room = self.region.end - self.region.start;
        let mut before = 0;
        for &end in ends {
            if end <= before || end > room || end % self.block != 0 {
                return Err(HotplugMemoryError::Saved);
            }
            before = end;
        }
        Ok(())
    }

    /// Makes at least the first `bytes` bytes memory, and as little as possible of the rest. The
    /// contents of memory that is removed are lost.
    pub fn set_usable(
        &mut self,
        bytes: u64,
        vm: &Vm,
        memory: &CurrentMemory,
    ) -> Result<(), HotplugMemoryError> {
        let wanted = bytes.next_multiple_of(self.block);
        let before = self.usable();
        if wanted > before {
            self.add(before as usize..wanted as usize, vm)?;
        } else {
            self.remove_above(wanted, vm)?;
        }
        let after = self.usable();
        if after != before {
            self.publish((before, after), memory)?;
        }
        Ok(())
    }

    fn add(&mut self, range: Range<usize>, vm: &Vm) -> Result<(), HotplugMemoryError> {
        let reservation = match &mut self.reservation {
            Some(reservation) => reservation,
            None => {
                let bytes = self.region.end - self.region.start;
                let reservation =
                    Reservation::new(bytes as usize).map_err(HotplugMemoryError::Map)?;
                self.reservation.insert(reservation)
            }
        };
        reservation
            .make_accessible(range.end)
            .map_err(HotplugMemoryError::Map)?;
        let slot = MemorySlot::hotplug(self.slot_ends.len());
        let guest = self.region.start + range.start as u64;
        vm.add_memory(slot, guest, reservation, &range)?;
        self.slot_ends.push(range.end as u64);
        Ok(())
    }

    /// Removes the slots that lie above `wanted` as a whole. Memory of the last slot may remain
    /// above it.
    fn remove_above(&mut self, wanted: u64, vm: &Vm) -> Result<(), HotplugMemoryError> {
        while let [.., end] = self.slot_ends[..] {
            let below = self.slot_ends.len() - 1;
            let start = below
                .checked_sub(1)
                .map_or(0, |index| self.slot_ends[index]);
            if start < wanted || end <= wanted {
                break;
            }
            vm.remove_memory(MemorySlot::hotplug(below))?;
            self.slot_ends.truncate(below);
            // The guest may have touched unplugged memory. A failure costs only memory.
            let range = start as usize..end as usize;
            let discarded = self.reservation.as_ref().map(|it| it.discard(&range));
            if let Some(Err(error)) = discarded {
                log::debug!("cannot free hotplug memory: {error}");
            }
        }
        Ok(())
    }

    /// Publishes `after` bytes of memory to the devices in place of `before`.
    fn publish(
        &self,
        (before, after): (u64, u64),
        memory: &CurrentMemory,
    ) -> Result<(), HotplugMemoryError> {
        let start = GuestAddress(self.region.start);
        let mut now = memory.get().as_ref().clone();
        if before > 0 {
            (now, _) = now
                .remove_region(start, before)
                .map_err(HotplugMemoryError::Regions)?;
        }
        if let (1.., Some(reservation)) = (after, &self.reservation) {
            let mapping = reservation
                .region(after as usize)
                .map_err(HotplugMemoryError::Describe)?;
            let region = GuestRegionMmap::new(mapping, start)
                .ok_or(GuestRegionCollectionError::MemoryRegionOverlap)
                .map_err(HotplugMemoryError::Regions)?;
            now = now
                .insert_region(Arc::new(region))
                .map_err(HotplugMemoryError::Regions)?;
        }
        memory.set(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(boot_mib: u64, max_mib: u64, address_bits: u8) -> Range<u64> {
        HotplugMemory::new(boot_mib, max_mib, address_bits)
            .region()
            .clone()
    }

    #[test]
    fn the_region_has_room_for_the_maximum_in_whole_memory_blocks() {
        assert_eq!(region(178, 1000, 40), 6 << 30..(6 << 30) + (896 << 20));
        let large = region(100 << 10, 103 << 10, 40);
        assert_eq!(
            (large.start % LARGE_MEMORY_BLOCK, large.end - large.start),
            (0, 4 << 30)
        );
        assert!(large.start >= HIGH_MEMORY_START + (100 << 30));
    }

    #[test]
    fn pieces_that_were_saved_are_in_order_and_within_the_region() {
        let memory = HotplugMemory::new(178, 1000, 40);
        let mib = |ends: &[u64]| ends.iter().map(|end| end << 20).collect::<Vec<_>>();
        for right in [&[][..], &[128], &[128, 384, 896]] {
            assert!(memory.check(&mib(right)).is_ok(), "{right:?}");
        }
        for wrong in [
            &[0][..],
            &[128, 128],
            &[256, 128],
            &[1],
            &[1024],
            &[u64::MAX >> 20],
        ] {
            let refused = memory.check(&mib(wrong));
            assert!(
                matches!(refused, Err(HotplugMemoryError::Saved)),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn a_machine_that_cannot_grow_has_an_empty_region() {
        assert!(region(512, 512, 40).is_empty());
        assert!(region(512, 128, 40).is_empty());
    }

    #[test]
    fn the_region_ends_where_the_cpus_cannot_address_more() {
        assert_eq!(region(178, 1 << 20, 36).end, 1 << 36);
        assert!(region(1 << 20, 2 << 20, 36).is_empty());
    }
}
