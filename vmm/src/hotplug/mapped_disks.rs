//! Read-only disks that are mapped into the guest's address space, each in a window of its own
//! above all other memory. All machines that have mapped a file use the same pages of the host.
//!
//! The vCPUs can only read there. The devices read for direct I/O whose buffer is a mapped file. If
//! a driver has them write, the machine gets that page to itself, as of a template's memory.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use rvm_protocol::vmm::MAX_MAPPED_BYTES;
use vm_memory::{GuestAddress, GuestRegionCollectionError, GuestRegionMmap};

use super::memory::HotplugMemoryError;
use crate::kvm::{MemorySlot, Vm};
use crate::memory::{CurrentMemory, GuestMemory, HUGE_PAGE, Reservation};

/// Linux manages such memory in pieces of 2 MiB.
const PIECE: u64 = HUGE_PAGE as u64;

/// The space for a disk.
const WINDOW: u64 = MAX_MAPPED_BYTES.next_multiple_of(PIECE);

/// The places for mapped disks.
pub struct MappedDisks {
    /// Where the window of the first begins.
    start: u64,
    /// The end of what the CPUs can address.
    end: u64,
    places: Vec<Place>,
}

#[derive(Default)]
struct Place {
    /// Made when it is first needed, and kept: it is never unmapped.
    reservation: Option<Reservation>,
    /// Where the guest has the disk that is there now.
    range: Option<Range<u64>>,
}

/// A disk that is mapped.
pub struct Mapped {
    /// From the file's first byte to the zeroes behind its last.
    pub range: Range<u64>,
    /// The size of the file.
    pub bytes: u64,
}

impl MappedDisks {
    /// Places for `count` disks in a machine whose memory may reach up to `memory_end`.
    pub fn new(count: usize, memory_end: u64, address_bits: u8) -> Self {
        Self {
            start: memory_end.next_multiple_of(WINDOW),
            end: 1_u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX),
            places: (0..count).map(|_| Place::default()).collect(),
        }
    }

    /// Maps a file as this disk. None if it cannot be: it is empty or too large, its file system
    /// maps none, or the CPUs cannot address the window.
    pub fn map(
        &mut self,
        disk: usize,
        mut file: &File,
        (vm, memory): (&Vm, &CurrentMemory),
    ) -> Result<Option<Mapped>, HotplugMemoryError> {
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(HotplugMemoryError::Map)?;
        let (Some(range), Some(slot)) = (self.range(disk, bytes), MemorySlot::image(disk)) else {
            return Ok(None);
        };
        let Some(place) = self.places.get_mut(disk) else {
            return Ok(None);
        };
        let reservation = place.reserve().map_err(HotplugMemoryError::Map)?;
        let length = range.end - range.start;
        match reservation.map_file(file, bytes as usize, length as usize) {
            // Files of such a file system can only be read.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            mapped => mapped.map_err(HotplugMemoryError::Map)?,
        }
        vm.add_read_only(slot, range.start, reservation, length)?;
        let published = publish(reservation, &range, memory);
        place.range = Some(range.clone());
        if let Err(error) = published {
            self.unmap(disk, (vm, memory))?;
            return Err(error);
        }
        Ok(Some(Mapped { range, bytes }))
    }

    /// Removes this disk from the guest's memory, if it is there.
    pub fn unmap(
        &mut self,
        disk: usize,
        (vm, memory): (&Vm, &CurrentMemory),
    ) -> Result<(), HotplugMemoryError> {
        let (Some(place), Some(slot)) = (self.places.get_mut(disk), MemorySlot::image(disk)) else {
            return Ok(());
        };
        let Some(range) = place.range.take() else {
            return Ok(());
        };
        memory.set(without(&memory.get(), &range));
        vm.remove_memory(slot)?;
        match &place.reservation {
            Some(reservation) => reservation.unmap_file().map_err(HotplugMemoryError::Map),
            None => Ok(()),
        }
    }

    /// The guest's memory without the disks.
    pub fn remove_from(&self, memory: Arc<GuestMemory>) -> Arc<GuestMemory> {
        let ranges = self.places.iter().filter_map(|place| place.range.as_ref());
        ranges.fold(memory, |memory, range| Arc::new(without(&memory, range)))
    }

    /// The addresses of a disk of this size.
    fn range(&self, disk: usize, bytes: u64) -> Option<Range<u64>> {
        let start = WINDOW.checked_mul(disk as u64)?.checked_add(self.start)?;
        let end = start.checked_add(bytes.checked_next_multiple_of(PIECE)?)?;
        let fits = (1..=MAX_MAPPED_BYTES).contains(&bytes) && end <= self.end;
        fits.then_some(start..end)
    }
}

impl Place {
    fn reserve(&mut self) -> std::io::Result<&mut Reservation> {
        match &mut self.reservation {
            Some(reservation) => Ok(reservation),
            none => Ok(none.insert(Reservation::new(WINDOW as usize)?)),
        }
    }
}

/// Gives the devices the memory at these addresses.
fn publish(
    reservation: &Reservation,
    range: &Range<u64>,
    memory: &CurrentMemory,
) -> Result<(), HotplugMemoryError> {
    let mapping = reservation
        .region((range.end - range.start) as usize)
        .map_err(HotplugMemoryError::Describe)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or(GuestRegionCollectionError::MemoryRegionOverlap)
        .map_err(HotplugMemoryError::Regions)?;
    let now = memory.get().insert_region(Arc::new(region));
    memory.set(now.map_err(HotplugMemoryError::Regions)?);
    Ok(())
}

/// The memory without the region at these addresses, if it has that.
fn without(memory: &GuestMemory, range: &Range<u64>) -> GuestMemory {
    let removed = memory.remove_region(GuestAddress(range.start), range.end - range.start);
    removed.map_or_else(|_| memory.clone(), |(rest, _)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_lie_apart_above_the_memory_in_whole_pieces() {
        let disks = MappedDisks::new(8, (6 << 30) + 5, 40);
        let first = disks.range(0, 1).unwrap();
        assert!(first.start >= (6 << 30) + 5);
        assert_eq!(first.end - first.start, PIECE);
        let largest = disks.range(0, MAX_MAPPED_BYTES).unwrap();
        assert!(largest.end <= disks.range(1, 1).unwrap().start);
    }

    #[test]
    fn what_does_not_fit_has_no_place() {
        let disks = MappedDisks::new(8, 6 << 30, 40);
        for bytes in [0, MAX_MAPPED_BYTES + 1, u64::MAX] {
            assert_eq!(disks.range(0, bytes), None, "{bytes}");
        }
        assert_eq!(MappedDisks::new(8, 6 << 30, 32).range(0, 1), None);
        assert_eq!(MappedDisks::new(8, u64::MAX - WINDOW, 64).range(7, 1), None);
    }
}
