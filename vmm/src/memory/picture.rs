//! A picture of the guest's memory, which is written to a file while the guest goes on.
//!
//! The picture is a copy of this process, as of fork(2): it shares every page with this process
//! until the guest writes to one, of which each then has its own. So the guest's memory must be
//! private, which [`super::map`] and [`image::map`] see to. The copy has one thread, under the
//! filter of system calls of the thread that takes the picture. It closes all descriptors but the
//! file, writes, and ends. It makes no use of KVM, which serves the process alone that has made a
//! machine. The process that takes the picture is the init process of a pid namespace, so the copy
//! dies with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::time::Timespec;
use rvm_sys::clone::{Cloned, copy_process, exit_now};
use rvm_sys::inherited_fds::close_all_but;
use vm_memory::{GuestMemory as _, GuestMemoryRegion};

use super::GuestMemory;
use super::image::{self, ImageError};
use super::reservation::HUGE_PAGE;

/// How long the copy may take to write: as much as the memory holds, on a slow disk.
const WRITE_PATIENCE: Duration = Duration::from_secs(600);

/// How long it may take to close the descriptors.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How long its end is waited for when it is killed.
const END_PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// How often is looked whether it has.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000,
};

/// The memory as it was, which another process writes. Dropping it ends that process, and waits for
/// its end.
pub struct Picture {
    writer: OwnedFd,
    board: Board,
    deadline: Option<Instant>,
}

impl Picture {
    /// Takes the picture. Nothing may write to the memory meanwhile. The arguments are those of
    /// [`image::write`].
    #[expect(unsafe_code, reason = "a child that is a copy of this process")]
    pub fn take(
        memory: &GuestMemory,
        file: &File,
        is_elsewhere: impl Fn(u64) -> bool,
    ) -> io::Result<Self> {
        let blocks = memory
            .iter()
            .map(|region| region.len().div_ceil(HUGE_PAGE as u64));
        let board = Board::new(blocks.sum::<u64>() as usize)?;
        // SAFETY: what the child calls allocates nothing and takes no lock, and it ends there.
        match unsafe { copy_process() }? {
            Cloned::Child => write_and_end(&board, memory, file, is_elsewhere),
            Cloned::Parent { pidfd, .. } => {
                let picture = Self {
                    writer: pidfd,
                    board,
                    deadline: Instant::now().checked_add(WRITE_PATIENCE),
                };
                picture.wait_until_apart()?;
                Ok(picture)
            }
        }
    }

    /// Waits until the copy has closed what it shares with this process: a stream or a lock that
    /// this process lets go of would else not be free.
    fn wait_until_apart(&self) -> io::Result<()> {
        let start = Instant::now();
        while self.board.get(Cell::IsApart) == 0 {
            if self.has_ended(&LOOK)? && self.board.get(Cell::IsApart) == 0 {
                return Err(self.board.error().unwrap_or_else(|| Errno::CHILD.into()));
            }
            if start.elapsed() > CLOSE_PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// A descriptor that is readable when the picture [can be put away](Self::finish).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// How long writing may still take; None if it has been given up.
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Gives up writing. [`Self::fd`] is readable soon.
    pub fn give_up(&mut self) {
        self.deadline = None;
        // It fails if the copy has ended.
        let _ = pidfd_send_signal(&self.writer, Signal::KILL);
    }

    /// The addresses of the blocks that are written, as [`image::write`] finds them. Waits for the
    /// end of the copy.
    pub fn finish(self) -> Result<Vec<u64>, ImageError> {
        let status = waitid(WaitId::PidFd(self.writer.as_fd()), WaitIdOptions::EXITED);
        let status = status.map_err(|error| ImageError::Write(error.into()))?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(self.board.blocks()),
            Some(_) => {
                let unknown = || Errno::IO.into();
                Err(ImageError::Write(
                    self.board.error().unwrap_or_else(unknown),
                ))
            }
            None => Err(ImageError::Killed),
        }
    }

    fn has_ended(&self, limit: &Timespec) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.writer, PollFlags::IN)];
        Ok(retry_on_intr(|| poll(&mut fds, Some(limit)))? > 0)
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // After `finish` all of these find nobody. Killed, the copy ends at once, unless the host's
        // disk does not answer: then it stays a zombie until this process ends.
        self.give_up();
        let _ = self.has_ended(&END_PATIENCE);
        let _ = waitid(
            WaitId::PidFd(self.writer.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

/// The work of the copy.
#[expect(unsafe_code, reason = "closes descriptors by number")]
fn write_and_end(
    board: &Board,
    memory: &GuestMemory,
    file: &File,
    is_elsewhere: impl Fn(u64) -> bool,
) -> ! {
    // SAFETY: nothing but the file is used from here on, and no destructor runs.
    if let Err(error) = unsafe { close_all_but(file.as_fd()) } {
        board.set(Cell::Errno, error.raw_os_error() as u64);
        exit_now(1);
    }
    board.set(Cell::IsApart, 1);
    let written = image::write(memory, file, is_elsewhere, |block| board.add_block(block));
    let Err(error) = written else { exit_now(0) };
    let errno = match &error {
        ImageError::Write(error) | ImageError::Resident(error) | ImageError::Size(error) => {
            error.raw_os_error()
        }
        _ => None,
    };
    board.set(Cell::Errno, errno.unwrap_or(libc::EIO) as u64);
    exit_now(1)
}

/// What the copy tells, in memory that it shares with this process.
struct Board {
    start: usize,
    cells: usize,
}

/// The cells before those of the blocks' addresses.
#[derive(Clone, Copy)]
enum Cell {
    /// 1 when the copy has closed its descriptors.
    IsApart,
    /// Why it has failed.
    Errno,
    /// How many blocks it has written.
    Blocks,
    /// The first block's.
    First,
}

impl Board {
    #[expect(unsafe_code, reason = "mmap")]
    fn new(blocks: usize) -> io::Result<Self> {
        let cells = Cell::First as usize + blocks;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let bytes = cells * size_of::<AtomicU64>();
        // SAFETY: the kernel chooses the place.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::SHARED)? };
        Ok(Self {
            start: start.expose_provenance(),
            cells,
        })
    }

    #[expect(unsafe_code, reason = "memory by its address")]
    fn cells(&self) -> &[AtomicU64] {
        // SAFETY: so much is mapped there until this is dropped, zeroed at first, and used as
        // atomic numbers alone.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(self.start), self.cells) }
    }

    fn set(&self, cell: Cell, value: u64) {
        if let Some(cell) = self.cells().get(cell as usize) {
            cell.store(value, Ordering::Release);
        }
    }

    fn get(&self, cell: Cell) -> u64 {
        let cell = self.cells().get(cell as usize);
        cell.map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    fn add_block(&self, address: u64) {
        let number = self.get(Cell::Blocks);
        if let Some(cell) = self.cells().get(Cell::First as usize + number as usize) {
            cell.store(address, Ordering::Release);
        }
        self.set(Cell::Blocks, number + 1);
    }

    fn blocks(&self) -> Vec<u64> {
        let addresses = self.cells().iter().skip(Cell::First as usize);
        let written = addresses.take(self.get(Cell::Blocks) as usize);
        written.map(|cell| cell.load(Ordering::Acquire)).collect()
    }

    fn error(&self) -> Option<io::Error> {
        match self.get(Cell::Errno) {
            0 => None,
            errno => Some(io::Error::from_raw_os_error(errno as i32)),
        }
    }
}

impl Drop for Board {
    #[expect(unsafe_code, reason = "munmap")]
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: nothing borrows the cells any more. It fails only for a wrong range.
        let _ = unsafe { munmap(start, self.cells * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 6;

    fn byte(memory: &GuestMemory, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Keeps a picture from being finished.
    fn for_ever(_: u64) -> bool {
        loop {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn what_is_written_to_the_memory_later_is_not_in_the_picture() {
        let memory = super::super::map(MIB).unwrap();
        let blocks: Vec<u64> = (0..MIB << 20).step_by(HUGE_PAGE).collect();
        for (value, block) in (1_u8..).zip(&blocks) {
            memory.write_obj(value, GuestAddress(*block)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        let picture = Picture::take(&memory, &file, |_| false).unwrap();
        for block in &blocks {
            memory.write_obj(9_u8, GuestAddress(*block)).unwrap();
        }
        super::super::discard(&memory.get_slice(GuestAddress(0), HUGE_PAGE).unwrap()).unwrap();
        assert_eq!(picture.finish().unwrap(), blocks);
        let restored = super::super::map(MIB).unwrap();
        image::map(&restored, &file, &blocks).unwrap();
        let found = blocks.iter().map(|block| byte(&restored, *block));
        assert!(found.eq([1, 2, 3]));
    }

    #[test]
    fn a_stream_that_this_process_closes_ends_although_the_picture_is_being_written() {
        let memory = super::super::map(MIB).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let picture = Picture::take(&memory, &tempfile::tempfile().unwrap(), for_ever);
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        drop(picture.unwrap());
    }

    #[test]
    fn why_it_could_not_be_written_is_told() {
        let memory = super::super::map(MIB).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let picture = Picture::take(&memory, &full, |_| false).unwrap();
        let Err(ImageError::Write(error)) = picture.finish() else {
            panic!("written to a full disk");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn nothing_is_left_of_a_picture_that_is_dropped_while_it_is_written() {
        let memory = super::super::map(MIB).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let picture = Picture::take(&memory, &file, for_ever).unwrap();
        let info = format!("/proc/self/fdinfo/{}", picture.fd().as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        let path = format!("/proc/{}", pid.unwrap().trim());
        assert!(std::path::Path::new(&path).exists());
        drop(picture);
        assert!(!std::path::Path::new(&path).exists(), "not even a zombie");
    }

    #[test]
    fn a_picture_that_is_given_up_says_so() {
        let memory = super::super::map(MIB).unwrap();
        memory.write_obj(1_u8, GuestAddress(0)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut picture = Picture::take(&memory, &file, for_ever).unwrap();
        assert!(picture.time_left().is_some());
        picture.give_up();
        assert!(matches!(picture.finish(), Err(ImageError::Killed)));
    }
}
