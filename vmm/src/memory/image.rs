//! The memory of a machine in a file: those of its blocks in which a byte is not zero, one after
//! the other.
//!
//! A machine that is restored maps the blocks privately: it reads the file's pages, which it shares
//! with all others that were restored from it, and gets a copy of those that it writes. The rest of
//! its memory is its own from the start, as that of a machine that boots. A block is as large as a
//! huge page, so that this rest can still be made of huge pages.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use rvm_protocol::vmm::PageRun;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion};

use super::reservation::{HUGE_PAGE, Reservation};
use super::{GuestMemory, GuestSlice};

/// The size of a block, to which the addresses of blocks are aligned. The last block of a region
/// may be shorter in the guest; in the file all have this size.
const BLOCK: u64 = HUGE_PAGE as u64;

const PAGE: usize = 4096;

/// So many are in a block.
const PAGES: usize = HUGE_PAGE / PAGE;

/// See madvise(2); the libc crate lacks it.
const MADV_COLLAPSE: libc::c_int = 25;

/// A machine's memory could not be written to a file, or not be mapped from one.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot write the guest's memory")]
    Write(#[source] io::Error),
    #[error(
        "the process that writes the guest's memory was killed: it took too long, or the host or \
         the container's cgroup is short of memory"
    )]
    Killed,
    #[error("cannot find out which memory the guest has touched")]
    Resident(#[source] io::Error),
    #[error("cannot find or set the size of the memory's file")]
    Size(#[source] io::Error),
    #[error("the memory's file has {found} bytes in place of {expected}")]
    Cut { expected: u64, found: u64 },
    #[error(
        "block {0:#x} of the memory's file lies outside the guest's memory, or is out of order"
    )]
    Block(u64),
    #[error("cannot map the memory's file")]
    Map(#[source] io::Error),
}

/// Writes the blocks that hold something to an empty file, and calls `found` with their guest
/// addresses, in their order in the file. Whether pages without memory may hold something, of the
/// block at an address, says `is_elsewhere`: they may be swapped out, or be those of a file that is
/// mapped.
///
/// Allocates nothing: it is also called in a copy of a process whose other threads may have held
/// the allocator's lock.
pub fn write(
    memory: &GuestMemory,
    mut file: &File,
    is_elsewhere: impl Fn(u64) -> bool,
    mut found: impl FnMut(u64),
) -> Result<(), ImageError> {
    let mut end = 0;
    for region in memory.iter() {
        let (start, bytes) = (region.start_addr().0, region.len());
        for offset in (0..bytes).step_by(HUGE_PAGE) {
            let (address, length) = (start + offset, BLOCK.min(bytes - offset) as usize);
            let outside = |_| ImageError::Write(io::ErrorKind::InvalidInput.into());
            let slice = memory.get_slice(GuestAddress(address), length);
            let slice = slice.map_err(outside)?;
            if !holds_something(&slice, is_elsewhere(address)).map_err(ImageError::Resident)? {
                continue;
            }
            file.seek(SeekFrom::Start(end)).map_err(ImageError::Size)?;
            write_slice(&slice, file).map_err(ImageError::Write)?;
            found(address);
            end += BLOCK;
        }
    }
    file.set_len(end).map_err(ImageError::Size)
}

/// Writes all of a slice at the file's position.
#[expect(unsafe_code, reason = "write takes a pointer")]
fn write_slice(slice: &GuestSlice<'_>, file: &File) -> io::Result<()> {
    let guard = slice.ptr_guard();
    let mut written = 0;
    while written < slice.len() {
        // SAFETY: so much of the guest's memory is mapped there, and the kernel reads it as it is.
        let result = unsafe {
            let rest = guard.as_ptr().add(written);
            libc::write(file.as_raw_fd(), rest.cast(), slice.len() - written)
        };
        match usize::try_from(result) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Has the kernel move a file's first blocks into huge pages, which Linux 6.1 and later can on a
/// tmpfs. A guest that reads or executes from such a page needs one entry in its page tables in
/// place of 512, and one exit in place of as many.
#[expect(unsafe_code, reason = "mmap")]
pub fn collapse(file: &File, blocks: usize) -> io::Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let bytes = blocks * HUGE_PAGE;
    let reservation = Reservation::new(bytes)?;
    let start = reservation.host_address(0);
    let pointer: *mut c_void = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range was reserved for this, and nobody accesses it. It is left mapped, since the
    // process ends soon.
    let advised = unsafe {
        mmap(
            pointer,
            bytes,
            ProtFlags::READ,
            MapFlags::SHARED | MapFlags::FIXED,
            file,
            0,
        )?;
        libc::madvise(pointer, bytes, MADV_COLLAPSE)
    };
    match advised {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a byte of the slice, a block or less, is not zero. Memory that the guest has never
/// touched is not read unless it `is_elsewhere`: that would allocate page tables for it.
fn holds_something(slice: &GuestSlice<'_>, is_elsewhere: bool) -> io::Result<bool> {
    let mut resident = [1; PAGES];
    if !is_elsewhere {
        find_resident(slice, &mut resident)?;
    }
    let mut page = [0; PAGE];
    let pages = resident.iter().take(slice.len().div_ceil(PAGE)).enumerate();
    for (index, resident) in pages {
        if resident & 1 != 0
            && slice.read(&mut page, index * PAGE).is_ok()
            && page.iter().any(|byte| *byte != 0)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sets for each page of the slice a byte whose lowest bit says whether it has memory, see
/// mincore(2).
#[expect(unsafe_code, reason = "mincore takes a pointer")]
fn find_resident(slice: &GuestSlice<'_>, resident: &mut [u8]) -> io::Result<()> {
    if resident.len() < slice.len().div_ceil(PAGE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    let result =
        unsafe { libc::mincore(guard.as_ptr().cast(), slice.len(), resident.as_mut_ptr()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps the blocks of a file at their addresses, in place of memory that nobody has used yet.
pub fn map(memory: &GuestMemory, file: &File, blocks: &[u64]) -> Result<(), ImageError> {
    check(file, blocks)?;
    for (offset, &address) in (0..).step_by(HUGE_PAGE).zip(blocks) {
        let end = region_end(memory, address).ok_or(ImageError::Block(address))?;
        let length = BLOCK.min(end - address) as usize;
        let slice = memory
            .get_slice(GuestAddress(address), length)
            .map_err(|_| ImageError::Block(address))?;
        map_block(&slice, file, offset).map_err(ImageError::Map)?;
    }
    Ok(())
}

/// Gives the machine its own copies of pages of the file, as its first write to each would: that
/// costs an exit of the guest for each, and one more if it has read the page before. What cannot be
/// copied now is copied then.
pub fn copy(memory: &GuestMemory, blocks: &[u64], pages: &[PageRun]) {
    for &PageRun(first, count) in pages {
        let (first, count) = (first as usize, count as usize);
        let (block, offset) = (first / PAGES, first % PAGES * PAGE);
        let address = (blocks.get(block)).and_then(|block| block.checked_add(offset as u64));
        let slice = address
            .filter(|_| count <= PAGES)
            .and_then(|address| memory.get_slice(GuestAddress(address), count * PAGE).ok());
        let Some(slice) = slice else {
            log::debug!("{count} pages from {first} on are none of the template's");
            continue;
        };
        if let Err(error) = populate(&slice) {
            // Linux 5.14 is the first that can.
            log::debug!("no page is copied beforehand: {error}");
            return;
        }
    }
}

#[expect(unsafe_code, reason = "madvise takes a pointer")]
fn populate(slice: &GuestSlice<'_>) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range is mapped, and what it holds stays as it is.
    unsafe {
        madvise(
            guard.as_ptr().cast(),
            slice.len(),
            Advice::LinuxPopulateWrite,
        )?
    };
    Ok(())
}

/// Checks that the file has all blocks, and that these are in order.
fn check(file: &File, blocks: &[u64]) -> Result<(), ImageError> {
    let expected = blocks.len() as u64 * BLOCK;
    let found = file.metadata().map_err(ImageError::Size)?.len();
    if found != expected {
        return Err(ImageError::Cut { expected, found });
    }
    let mut next = 0;
    for &address in blocks {
        if address < next || address % BLOCK != 0 {
            return Err(ImageError::Block(address));
        }
        next = address.saturating_add(BLOCK);
    }
    Ok(())
}

/// The end of the region that an address lies in.
fn region_end(memory: &GuestMemory, address: u64) -> Option<u64> {
    let region = memory.find_region(GuestAddress(address))?;
    Some(region.start_addr().0 + region.len())
}

/// Maps the file's block at `offset` in place of the memory of `slice`.
#[expect(unsafe_code, reason = "mmap over a mapping")]
fn map_block(slice: &GuestSlice<'_>, file: &File, offset: u64) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let start: *mut c_void = guard.as_ptr().cast();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range is guest memory that nobody has used yet, of which no Rust reference
    // exists, and stays accessible. The file has bytes for all of it.
    unsafe {
        mmap(start, slice.len(), access, flags, file, offset)?;
        // As the rest of the guest's memory.
        madvise(start, slice.len(), Advice::LinuxDontDump)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    const MIB: u64 = 7;

    fn written() -> (File, Vec<u64>) {
        let memory = super::super::map(MIB).unwrap();
        memory.write_obj(1_u8, GuestAddress(5)).unwrap();
        memory.write_obj(0_u8, GuestAddress(BLOCK)).unwrap();
        let last = GuestAddress((MIB << 20) - 1);
        memory.write_obj(9_u8, last).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut blocks = Vec::new();
        write(&memory, &file, |_| false, |block| blocks.push(block)).unwrap();
        (file, blocks)
    }

    fn restored(file: &File, blocks: &[u64]) -> Arc<GuestMemory> {
        let memory = super::super::map(MIB).unwrap();
        map(&memory, file, blocks).unwrap();
        memory
    }

    fn byte(memory: &GuestMemory, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn blocks_that_hold_something_come_back_and_the_others_are_zero() {
        let (file, blocks) = written();
        assert_eq!(blocks, [0, 6 << 20], "a block of zeroes holds nothing");
        assert_eq!(file.metadata().unwrap().len(), 2 * BLOCK);
        let memory = restored(&file, &blocks);
        let found = [5, 6, BLOCK, (MIB << 20) - 1].map(|address| byte(&memory, address));
        assert_eq!(found, [1, 0, 0, 9]);
    }

    #[test]
    fn what_one_machine_writes_no_other_sees() {
        let (file, blocks) = written();
        let machines = [(); 2].map(|()| restored(&file, &blocks));
        machines[0].write_obj(7_u8, GuestAddress(5)).unwrap();
        machines[0].write_obj(7_u8, GuestAddress(BLOCK)).unwrap();
        assert_eq!((byte(&machines[1], 5), byte(&machines[1], BLOCK)), (1, 0));
        assert_eq!(byte(&restored(&file, &blocks), 5), 1);
    }

    /// Whether the page at an address is in memory, and no page of a file; see proc_pid_pagemap(5).
    fn is_own(memory: &GuestMemory, address: u64) -> bool {
        let slice = memory.get_slice(GuestAddress(address), 1).unwrap();
        let page = slice.ptr_guard().as_ptr().addr() / PAGE;
        let mut entry = [0; 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entry, page as u64 * 8).unwrap();
        u64::from_ne_bytes(entry) & (0b101 << 61) == 1 << 63
    }

    #[test]
    fn pages_that_are_copied_beforehand_hold_what_the_file_has_and_others_stay_the_files() {
        let (file, blocks) = written();
        let memory = restored(&file, &blocks);
        let last = (MIB << 20) - PAGE as u64;
        let outside = [
            (u32::MAX, 1),
            (1024, 1),
            (0, 513),
            (512, 257),
            (3, u32::MAX),
        ];
        let pages: Vec<_> = [(0, 1), (767, 1)].into_iter().chain(outside).collect();
        let pages = pages
            .into_iter()
            .map(|(first, count)| PageRun(first, count));
        copy(&memory, &blocks, &pages.collect::<Vec<_>>());
        assert_eq!((byte(&memory, 5), byte(&memory, last + 4095)), (1, 9));
        let own = [0, PAGE as u64, last].map(|address| is_own(&memory, address));
        assert_eq!(own, [true, false, true]);
        memory.write_obj(7_u8, GuestAddress(5)).unwrap();
        assert_eq!(byte(&restored(&file, &blocks), 5), 1);
    }

    #[test]
    fn the_file_need_not_be_writable() {
        let (file, blocks) = written();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let memory = restored(&File::open(path).unwrap(), &blocks);
        memory.write_obj(7_u8, GuestAddress(5)).unwrap();
        assert_eq!(byte(&memory, 5), 7);
    }

    #[test]
    fn a_cut_file_and_blocks_that_do_not_fit_are_refused() {
        let (file, _) = written();
        for blocks in [
            vec![0],
            vec![2 << 20, 0],
            vec![0, 0],
            vec![0, 1 << 20],
            vec![0, 8 << 20],
            vec![0, u64::MAX - BLOCK + 1],
        ] {
            let result = map(&super::super::map(MIB).unwrap(), &file, &blocks);
            assert!(
                matches!(result, Err(ImageError::Cut { .. } | ImageError::Block(_))),
                "{blocks:x?}"
            );
        }
    }
}
