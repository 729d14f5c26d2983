//! The guest's memory: where it lies in the guest's address space and in ours.
//!
//! The machine makes it once, and may add to it later; devices see it only through [`GuestMemory`],
//! whose accessors check every address.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vm_memory::{GuestRegionCollectionError, bitmap::BS};

use crate::reserved::Reserved;

/// The guest's memory.
///
/// The bitmap is the one that virtiofsd's readers and writers are made for. It records nothing
/// unless a vhost-user front end asks for it, which ours never does.
pub type GuestMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// A checked piece of the guest's memory.
pub type GuestSlice<'m> = vm_memory::VolatileSlice<'m, BS<'m, BitmapMmapRegion>>;

/// The guest's memory as it is at the time, for those who look at it again and again.
#[derive(Clone, Debug)]
pub struct CurrentMemory(Arc<RwLock<Arc<GuestMemory>>>);

impl CurrentMemory {
    /// Begins with this.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self(Arc::new(RwLock::new(memory)))
    }

    /// What it is now. It stays mapped whatever comes after.
    pub fn get(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it.
    pub fn set(&self, memory: GuestMemory) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(memory);
    }
}

/// Where the first stretch of memory ends at the latest: the last GiB below 4 GiB belongs to the
/// devices and the interrupt controllers.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;

/// Where memory goes on.
pub const HIGH_MEMORY_START: u64 = 0x1_0000_0000;

/// Making the guest's memory failed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The region does not suit the library.
    #[error("cannot use {mib} MiB of guest memory")]
    Describe {
        /// How much was asked for.
        mib: u64,
        /// The reason.
        #[source]
        source: MmapRegionError,
    },
    /// The regions overlap or are empty.
    #[error("guest memory of {mib} MiB does not fit the address space")]
    Layout {
        /// How much was asked for.
        mib: u64,
        /// The reason.
        #[source]
        source: GuestRegionCollectionError,
    },
    /// The kernel gave none.
    #[error("cannot map {mib} MiB of guest memory; the host may be short of memory")]
    Map {
        /// How much was asked for.
        mib: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An access failed.
    #[error("guest memory access")]
    Access(#[from] GuestMemoryError),
}

/// The stretches of memory that a machine of `mib` MiB has, as (address, bytes).
pub fn layout(mib: u64) -> Vec<(GuestAddress, u64)> {
    let bytes = mib << 20;
    let low = bytes.min(LOW_MEMORY_END);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_MEMORY_START), bytes - low));
    }
    ranges
}

/// Maps `mib` MiB of memory. No page of it exists before the guest or a device touches it.
///
/// The memory is private and anonymous: every device that looks at it is in this process.
pub fn map(mib: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    let regions = layout(mib)
        .into_iter()
        .map(|(start, bytes)| {
            let mapping = map_range(mib, usize::try_from(bytes).unwrap_or(usize::MAX))?;
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

/// Maps one stretch.
fn map_range(mib: u64, bytes: usize) -> Result<MmapRegion<BitmapMmapRegion>, MemoryError> {
    let mapped = Reserved::new(bytes).and_then(|mut reserved| {
        reserved.make_accessible(bytes)?;
        Ok(reserved)
    });
    mapped
        .map_err(|source| MemoryError::Map { mib, source })?
        .region(bytes)
        .map_err(|source| MemoryError::Describe { mib, source })
}

/// Gives memory back to the host that the guest does not need. It reads as zeroes then. Failing costs
/// the host what the memory has cost it, and nothing else.
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
    use super::*;
    use crate::reserved::LARGE_PAGE;
    use vm_memory::{Bytes, GuestMemory as _};

    #[test]
    fn small_memory_is_one_stretch() {
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
    fn memory_of_any_size_begins_where_a_large_page_may() {
        for mib in [1, 7, 633] {
            let memory = map(mib).unwrap();
            let start = memory.get_host_address(GuestAddress(0)).unwrap();
            assert_eq!(start.addr() % LARGE_PAGE, 0, "{mib} MiB");
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
