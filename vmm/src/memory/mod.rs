//! Guest memory: its layout in the guest's address space and its mapping in this process.
//!
//! The machine maps the memory of the boot once, and hotplug may add to it later. Devices see it
//! only through [`GuestMemory`], whose accessors check every address.

pub mod image;
pub mod picture;
mod reservation;

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vm_memory::{GuestRegionCollectionError, bitmap::BS};

pub use reservation::{HUGE_PAGE, Reservation};

/// The guest's memory.
///
/// The bitmap is the one that virtiofsd's readers and writers are made for. It records nothing
/// unless a vhost-user front end asks for it, which ours never does.
pub type GuestMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// A checked piece of the guest's memory.
pub type GuestSlice<'m> = vm_memory::VolatileSlice<'m, BS<'m, BitmapMmapRegion>>;

/// The guest's memory as of now, shared by the devices and by hotplug, which changes it.
#[derive(Clone, Debug)]
pub struct CurrentMemory(Arc<RwLock<Arc<GuestMemory>>>);

impl CurrentMemory {
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Arc::new(RwLock::new(memory)))
    }

    /// The memory as of now. It stays mapped whatever [`Self::set`] is called with later.
    pub fn get(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, memory: GuestMemory) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(memory);
    }
}

/// The highest address at which low memory may end: the last GiB below 4 GiB is the device hole,
/// for MMIO windows and interrupt controllers.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;

/// Where memory above the device hole begins.
pub const HIGH_MEMORY_START: u64 = 0x1_0000_0000;

/// Guest memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot use {mib} MiB of guest memory")]
    Describe {
        mib: u64,
        #[source]
        source: MmapRegionError,
    },
    #[error("guest memory of {mib} MiB does not fit the address space")]
    Layout {
        mib: u64,
        #[source]
        source: GuestRegionCollectionError,
    },
    #[error("cannot map {mib} MiB of guest memory; the host may be short of memory")]
    Map {
        mib: u64,
        #[source]
        source: io::Error,
    },
}

/// The regions of memory of a machine with `mib` MiB, as (address, bytes): one below the device
/// hole, and one above it if the machine has more.
pub fn layout(mib: u64) -> Vec<(GuestAddress, u64)> {
    let bytes = mib << 20;
    let low = bytes.min(LOW_MEMORY_END);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_MEMORY_START), bytes - low));
    }
    ranges
}

/// Maps `mib` MiB of memory. A page is allocated when the guest or a device first touches it.
///
/// The memory is private and anonymous: every device that accesses it is in this process.
pub fn map(mib: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    let regions = layout(mib)
        .into_iter()
        .map(|(start, bytes)| {
            let mapping = map_region(mib, usize::try_from(bytes).unwrap_or(usize::MAX))?;
            GuestRegionMmap::new(mapping, start).ok_or(MemoryError::Layout {
                mib,
                source: GuestRegionCollectionError::MemoryRegionOverlap,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let memory =
        GuestMemory::from_regions(regions).map_err(|source| MemoryError::Layout { mib, source })?;
    Ok(Arc::new(memory))
}

fn map_region(mib: u64, bytes: usize) -> Result<MmapRegion<BitmapMmapRegion>, MemoryError> {
    let reservation = Reservation::new(bytes).and_then(|mut reservation| {
        reservation.make_accessible(bytes)?;
        Ok(reservation)
    });
    reservation
        .map_err(|source| MemoryError::Map { mib, source })?
        .region(bytes)
        .map_err(|source| MemoryError::Describe { mib, source })
}

/// Gives memory that the guest does not need back to the host. It then reads as zeroes. If this
/// fails the host keeps the pages allocated; nothing else goes wrong.
#[expect(unsafe_code, reason = "madvise takes a pointer")]
pub fn discard(slice: &GuestSlice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is mapped guest memory, which is private to this process and of which no
    // Rust reference exists. The guest said that it does not need the contents; should it lie, it
    // reads zeroes. The kernel refuses an address that is no page's.
    unsafe {
        rustix::mm::madvise(
            guard.as_ptr().cast(),
            slice.len(),
            rustix::mm::Advice::LinuxDontNeed,
        )
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::reservation::HUGE_PAGE;
    use super::*;
    use vm_memory::{Bytes, GuestMemory as _};

    #[test]
    fn small_memory_is_one_region() {
        assert_eq!(layout(128), [(GuestAddress(0), 128 << 20)]);
    }

    #[test]
    fn large_memory_leaves_the_device_hole_free() {
        assert_eq!(
            layout(4096),
            [
                (GuestAddress(0), LOW_MEMORY_END),
                (GuestAddress(HIGH_MEMORY_START), 1 << 30)
            ]
        );
    }

    #[test]
    fn memory_of_any_size_begins_where_a_huge_page_may() {
        for mib in [1, 7, 633] {
            let memory = map(mib).unwrap();
            let start = memory.get_host_address(GuestAddress(0)).unwrap();
            assert_eq!(start.addr() % HUGE_PAGE, 0, "{mib} MiB");
        }
    }

    #[test]
    fn mapped_memory_is_zeroed_and_bounded() {
        let memory = map(2).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress((2 << 20) - 8)).unwrap(),
            0
        );
        assert!(memory.read_obj::<u64>(GuestAddress((2 << 20) - 7)).is_err());
        assert_eq!(memory.num_regions(), 1);
    }
}
