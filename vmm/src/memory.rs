//! The guest's memory: where it lies in the guest's address space and in ours.
//!
//! The machine makes it once; devices see it only through [`GuestMemory`], whose accessors check
//! every address.

use std::io;
use std::sync::Arc;

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

/// Making the guest's memory failed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel gave none.
    #[error("cannot map {mib} MiB of guest memory; the host may be short of memory")]
    Map {
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
            let mapping = MmapRegionBuilder::new_with_bitmap(
                usize::try_from(bytes).unwrap_or(usize::MAX),
                BitmapMmapRegion::default(),
            )
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|source| MemoryError::Map { mib, source })?;
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
