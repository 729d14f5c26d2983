//! A reservation of address space in this process, which becomes guest memory at once or piece by
//! piece.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect,
};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

/// The size that the host's processor maps with one page table entry where it can. Guest memory
/// begins at a multiple of it, so that the host may use such huge pages, which saves a quarter of a
/// start.
pub const HUGE_PAGE: usize = 2 << 20;

/// A range of address space with inaccessible pages on both sides. It is never unmapped.
#[derive(Debug)]
pub struct Reservation {
    /// The first address.
    start: usize,
    bytes: usize,
    /// How many bytes from the start are memory.
    accessible: usize,
}

impl Reservation {
    /// Reserves `bytes` bytes, none of which can be accessed yet.
    #[expect(unsafe_code, reason = "mmap")]
    pub fn new(bytes: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let with_margins = bytes.saturating_add(2 * HUGE_PAGE);
        // SAFETY: the kernel chooses the place, and nothing that is there can be accessed.
        let mapped =
            unsafe { mmap_anonymous(ptr::null_mut(), with_margins, ProtFlags::empty(), flags)? };
        let mapped = mapped.expose_provenance();
        Ok(Self {
            start: mapped + HUGE_PAGE - mapped % HUGE_PAGE,
            bytes,
            accessible: 0,
        })
    }

    /// Makes the first `end` bytes memory. A page is allocated when it is first touched. The memory
    /// is left out of core dumps, which may go where the guest's secrets must not.
    #[expect(unsafe_code, reason = "mprotect and madvise take pointers")]
    pub fn make_accessible(&mut self, end: usize) -> io::Result<()> {
        if end > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if end <= self.accessible {
            return Ok(());
        }
        let (start, length) = self.pointer_to(&(self.accessible..end));
        let access = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range was reserved by this and nobody could access it yet.
        unsafe {
            mprotect(start, length, access)?;
            madvise(start, length, Advice::LinuxDontDump)?;
            // With pages of 4 KiB a start takes twice the instructions (200 million and not 107),
            // because every page is an exit. Many hosts give huge pages only to those who ask; a
            // kernel that has none refuses.
            match madvise(start, length, Advice::LinuxHugepage) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.accessible = end;
        Ok(())
    }

    /// Gives the pages of a range back to the host. The range then reads as zeroes.
    #[expect(unsafe_code, reason = "madvise takes a pointer")]
    pub fn discard(&self, range: &Range<usize>) -> io::Result<()> {
        if range.end > self.accessible {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (start, length) = self.pointer_to(range);
        // SAFETY: the range is the guest's memory, of which no Rust reference exists.
        unsafe { madvise(start, length, Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// Makes the first `end` bytes memory, which begins with the first `bytes` bytes of a file.
    /// What is written there is this process's own.
    #[expect(unsafe_code, reason = "mmap")]
    pub fn map_file(&mut self, file: &File, bytes: usize, end: usize) -> io::Result<()> {
        self.make_accessible(end.max(bytes))?;
        let (start, length) = self.pointer_to(&(0..bytes));
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is the guest's memory, of which no Rust reference exists.
        unsafe { mmap(start, length, access, flags, file, 0)? };
        Ok(())
    }

    /// Lets go of what was mapped. The memory reads as zeroes then, for whoever still has it.
    #[expect(unsafe_code, reason = "mmap")]
    pub fn unmap_file(&self) -> io::Result<()> {
        let (start, length) = self.pointer_to(&(0..self.accessible));
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is the guest's memory, of which no Rust reference exists.
        unsafe { mmap_anonymous(start, length, access, flags)? };
        Ok(())
    }

    /// The first `bytes` bytes as vm-memory describes a mapping, or fewer if fewer are accessible.
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

    /// The address in this process of the byte at `offset`.
    pub fn host_address(&self, offset: usize) -> usize {
        self.start + offset
    }

    fn pointer_to(&self, range: &Range<usize>) -> (*mut c_void, usize) {
        let start = ptr::with_exposed_provenance_mut(self.start + range.start);
        (start, range.end - range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use vm_memory::{Bytes, VolatileMemory};

    #[test]
    fn it_becomes_memory_piece_by_piece() {
        let mut reservation = Reservation::new(4 * HUGE_PAGE).unwrap();
        assert_eq!(reservation.host_address(0) % HUGE_PAGE, 0);
        reservation.make_accessible(HUGE_PAGE).unwrap();
        let first = reservation.region(HUGE_PAGE).unwrap();
        first.as_volatile_slice().write_obj(7_u8, 100).unwrap();
        reservation.make_accessible(2 * HUGE_PAGE).unwrap();
        let both = reservation.region(2 * HUGE_PAGE).unwrap();
        assert_eq!(both.as_volatile_slice().read_obj::<u8>(100).unwrap(), 7);
        reservation.discard(&(0..HUGE_PAGE)).unwrap();
        assert_eq!(both.as_volatile_slice().read_obj::<u8>(100).unwrap(), 0);
    }

    #[test]
    fn it_is_left_out_of_core_dumps_and_asks_for_huge_pages() {
        let mut reservation = Reservation::new(HUGE_PAGE).unwrap();
        reservation.make_accessible(HUGE_PAGE).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", reservation.host_address(0));
        let entry = maps.split_once(&start).unwrap().1;
        let flags = entry.lines().find(|line| line.starts_with("VmFlags:"));
        let flags: Vec<&str> = flags.unwrap().split_whitespace().collect();
        assert!(flags.contains(&"dd"), "{flags:?}");
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            assert!(flags.contains(&"hg"), "{flags:?}");
        }
    }

    #[test]
    fn a_file_is_mapped_and_let_go_of_and_keeps_what_it_has() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let mut reservation = Reservation::new(HUGE_PAGE).unwrap();
        reservation.map_file(&file, 5000, HUGE_PAGE).unwrap();
        let region = reservation.region(HUGE_PAGE).unwrap();
        let memory = region.as_volatile_slice();
        let byte = |at| memory.read_obj::<u8>(at).unwrap();
        assert_eq!(
            [0, 4999, 5000, 8192, HUGE_PAGE - 1].map(byte),
            [7, 7, 0, 0, 0]
        );
        memory.write_obj(9_u8, 100).unwrap();
        reservation.unmap_file().unwrap();
        assert_eq!(byte(100), 0);
        let mut kept = [0; 101];
        file.read_exact_at(&mut kept, 0).unwrap();
        assert_eq!(kept[100], 7);
    }

    #[test]
    fn nothing_past_the_reservation_can_be_used() {
        let mut reservation = Reservation::new(HUGE_PAGE).unwrap();
        assert!(reservation.make_accessible(HUGE_PAGE + 1).is_err());
        assert!(reservation.discard(&(0..1)).is_err(), "not accessible yet");
    }
}
