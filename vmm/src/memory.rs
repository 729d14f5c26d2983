//! The guest's memory: where it lies in the guest's address space and in ours.
//!
//! The machine makes it once; devices see it only through [`GuestMemory`], whose accessors check
//! every address.

use std::io;
use std::ptr;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap, GuestRegionMmap};
use vm_memory::{GuestRegionCollectionError, bitmap::BS};

/// The guest's memory.
///
/// The bitmap is the one that virtiofsd's readers and writers are made for. It records nothing
/// unless a vhost-user front end asks for it, which ours never does.
pub type GuestMemory = GuestMemoryMmap<BitmapMmapRegion>;

/// A checked piece of the guest's memory.
pub type GuestSlice<'m> = vm_memory::VolatileSlice<'m, BS<'m, BitmapMmapRegion>>;

/// Where the first stretch of memory ends at the latest: the last GiB below 4 GiB belongs to the
/// devices and the interrupt controllers.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;

/// Where memory goes on.
pub const HIGH_MEMORY_START: u64 = 0x1_0000_0000;

/// What the host's processor maps with one entry where it can. A guest's memory begins at a multiple of
/// it, so that the host may use such large pages, which saves a quarter of a start.
const LARGE_PAGE: usize = 2 << 20;

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
    /// Advice about the memory was refused.
    #[error("cannot set the guest memory's paging policy")]
    Advise(#[source] io::Error),
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
/// The memory is private and anonymous: every device that looks at it is in this process. It is
/// left out of core dumps, which may go where the guest's secrets must not.
pub fn map(mib: u64) -> Result<Arc<GuestMemory>, MemoryError> {
    let regions = layout(mib)
        .into_iter()
        .map(|(start, bytes)| {
            let mapping = map_range(mib, usize::try_from(bytes).unwrap_or(usize::MAX))?;
            advise(&mapping, rustix::mm::Advice::LinuxDontDump)?;
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

/// Maps one stretch, between two inaccessible ones. It stays mapped as long as the process lives.
#[expect(unsafe_code, reason = "mmap at a chosen address")]
fn map_range(
    mib: u64,
    bytes: usize,
) -> Result<vm_memory::MmapRegion<BitmapMmapRegion>, MemoryError> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let reserved = bytes.saturating_add(2 * LARGE_PAGE);
    // SAFETY: the kernel chooses the place; then one that lies within what it gave, with at least a
    // page to spare on each side, is mapped anew. The pointer is that mapping's, of the size given
    // to the builder, and nobody unmaps it.
    unsafe {
        let start =
            mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), flags).map_err(|e| {
                MemoryError::Map {
                    mib,
                    source: e.into(),
                }
            })?;
        let offset = LARGE_PAGE - start.addr() % LARGE_PAGE;
        let place = start.byte_add(offset);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let place = mmap_anonymous(place, bytes, access, flags | MapFlags::FIXED).map_err(|e| {
            MemoryError::Map {
                mib,
                source: e.into(),
            }
        })?;
        MmapRegionBuilder::new_with_bitmap(bytes, BitmapMmapRegion::default())
            .with_raw_mmap_pointer(place.cast())
            .build()
            .map_err(|source| MemoryError::Describe { mib, source })
    }
}

#[expect(unsafe_code, reason = "madvise takes a pointer")]
fn advise(
    mapping: &vm_memory::MmapRegion<BitmapMmapRegion>,
    advice: rustix::mm::Advice,
) -> Result<(), MemoryError> {
    // SAFETY: the range is the mapping itself, and the advice given here changes no contents.
    unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), mapping.size(), advice) }
        .map_err(|e| MemoryError::Advise(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
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
