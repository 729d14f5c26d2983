//! Address space of this process that becomes the guest's memory, all at once or piece by piece. It
//! lies between two inaccessible pages at the least, and is never unmapped.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

/// What the host's processor maps with one entry where it can. A guest's memory begins at a multiple of
/// it, so that the host may use such large pages, which saves a quarter of a start.
pub const LARGE_PAGE: usize = 2 << 20;

/// The address space.
#[derive(Debug)]
pub struct Reserved {
    /// Its first address.
    start: usize,
    bytes: usize,
    /// How much of it is memory, from its start.
    accessible: usize,
}

impl Reserved {
    /// Reserves so many bytes, of which none can be accessed.
    #[expect(unsafe_code, reason = "mmap")]
    pub fn new(bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let with_margins = bytes.saturating_add(2 * LARGE_PAGE);
        // SAFETY: the kernel chooses the place, and nothing that is there can be accessed.
        let mapped =
            unsafe { mmap_anonymous(ptr::null_mut(), with_margins, ProtFlags::empty(), flags)? };
        let mapped = mapped.expose_provenance();
        Ok(Self {
            start: mapped + LARGE_PAGE - mapped % LARGE_PAGE,
            bytes,
            accessible: 0,
        })
    }

    /// Makes memory of it, up to `end` bytes from its start. No page of it exists before it is
    /// touched. It is left out of core dumps, which may go where the guest's secrets must not.
    #[expect(unsafe_code, reason = "mprotect and madvise take pointers")]
    pub fn make_accessible(&mut self, end: usize) -> io::Result<()> {
        if end > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if end <= self.accessible {
            return Ok(());
        }
        let (start, length) = self.part(&(self.accessible..end));
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range was reserved by this and nobody could access it yet.
        unsafe {
            mprotect(start, length, access)?;
            madvise(start, length, Advice::LinuxDontDump)?;
            // In pages of 4 KiB a start takes twice the instructions (200 million and not 107),
            // because every page is an exit. Many hosts give larger ones only to those who ask; a
            // kernel that has none refuses.
            match madvise(start, length, Advice::LinuxHugepage) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.accessible = end;
        Ok(())
    }

    /// Gives a part back to the host. It reads as zeroes then.
    #[expect(unsafe_code, reason = "madvise takes a pointer")]
    pub fn discard(&self, range: &Range<usize>) -> io::Result<()> {
        if range.end > self.accessible {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (start, length) = self.part(range);
        // SAFETY: the range is the guest's memory, of which no Rust reference exists.
        unsafe { madvise(start, length, Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// The first `bytes` of it, which must be accessible, as the libraries know memory.
    #[expect(unsafe_code, reason = "a mapping is described by its address")]
    pub fn region(&self, bytes: usize) -> Result<MmapRegion<BitmapMmapRegion>, MmapRegionError> {
        let bytes = bytes.min(self.accessible);
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: so much is mapped there, and stays so: nothing is unmapped or made inaccessible
        // again.
        unsafe {
            MmapRegionBuilder::new_with_bitmap(bytes, BitmapMmapRegion::default())
                .with_raw_mmap_pointer(start)
                .build()
        }
    }

    /// Where a byte of it lies in this process.
    pub fn address(&self, offset: usize) -> usize {
        self.start + offset
    }

    fn part(&self, range: &Range<usize>) -> (*mut c_void, usize) {
        let start = ptr::with_exposed_provenance_mut(self.start + range.start);
        (start, range.end - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, VolatileMemory};

    #[test]
    fn it_becomes_memory_piece_by_piece() {
        let mut reserved = Reserved::new(4 * LARGE_PAGE).unwrap();
        assert_eq!(reserved.address(0) % LARGE_PAGE, 0);
        reserved.make_accessible(LARGE_PAGE).unwrap();
        let first = reserved.region(LARGE_PAGE).unwrap();
        first.as_volatile_slice().write_obj(7_u8, 100).unwrap();
        reserved.make_accessible(2 * LARGE_PAGE).unwrap();
        let both = reserved.region(2 * LARGE_PAGE).unwrap();
        assert_eq!(both.as_volatile_slice().read_obj::<u8>(100).unwrap(), 7);
        reserved.discard(&(0..LARGE_PAGE)).unwrap();
        assert_eq!(both.as_volatile_slice().read_obj::<u8>(100).unwrap(), 0);
    }

    #[test]
    fn it_is_left_out_of_core_dumps_and_asks_for_large_pages() {
        let mut reserved = Reserved::new(LARGE_PAGE).unwrap();
        reserved.make_accessible(LARGE_PAGE).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", reserved.address(0));
        let entry = maps.split_once(&start).unwrap().1;
        let flags = entry.lines().find(|line| line.starts_with("VmFlags:"));
        let flags: Vec<&str> = flags.unwrap().split_whitespace().collect();
        assert!(flags.contains(&"dd"), "{flags:?}");
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            assert!(flags.contains(&"hg"), "{flags:?}");
        }
    }

    #[test]
    fn what_was_not_reserved_cannot_be_had() {
        let mut reserved = Reserved::new(LARGE_PAGE).unwrap();
        assert!(reserved.make_accessible(LARGE_PAGE + 1).is_err());
        assert!(reserved.discard(&(0..1)).is_err(), "not accessible yet");
    }
}
