//! The buffers of one side of a chain.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use smallvec::SmallVec;
use vm_memory::ByteValued;
use vm_memory::bitmap::Bitmap;

use super::ChainError;
use crate::memory::GuestSlice;

/// One side of a chain: slices of guest memory, consumed from the front.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    pub(super) segments: SmallVec<[GuestSlice<'m>; 4]>,
}

impl<'m> Buffers<'m> {
    /// The number of bytes left.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|segment| segment.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `bytes` bytes off.
    pub fn split_to(&mut self, bytes: usize) -> Result<Self, ChainError> {
        let mut front = Self::default();
        let mut wanted = bytes;
        while wanted > 0 {
            let Some(first) = self.segments.first_mut() else {
                return Err(ChainError::Short("split"));
            };
            if first.len() > wanted {
                let (taken, rest) = first.split_at(wanted).map_err(|_| ChainError::Buffer)?;
                *first = rest;
                front.segments.push(taken);
                wanted = 0;
            } else {
                wanted -= first.len();
                front.segments.push(self.segments.remove(0));
            }
        }
        Ok(front)
    }

    /// Copies the first bytes to `target`, as many as fit, consumes nothing and returns how many.
    pub fn peek(&self, target: &mut [u8]) -> usize {
        let mut done = 0;
        for segment in &self.segments {
            if done == target.len() {
                break;
            }
            done += segment.copy_to(&mut target[done..]);
        }
        done
    }

    /// Copies the first bytes to `target`, as many as fit, and returns how many.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        let bytes = target.len().min(self.len());
        let Ok(front) = self.split_to(bytes) else {
            return 0;
        };
        let mut done = 0;
        for segment in &front.segments {
            done += segment.copy_to(&mut target[done..]);
        }
        done
    }

    /// Copies `source` to the first bytes, as much of it as fits, and returns how much.
    pub fn write(&mut self, source: &[u8]) -> usize {
        let bytes = source.len().min(self.len());
        let Ok(front) = self.split_to(bytes) else {
            return 0;
        };
        let mut done = 0;
        for segment in &front.segments {
            segment.copy_from(&source[done..]);
            done += segment.len();
        }
        done
    }

    /// Takes a structure off the front. `what` names it in the error if bytes are missing.
    pub fn read_obj<T: ByteValued + Default>(
        &mut self,
        what: &'static str,
    ) -> Result<T, ChainError> {
        let mut object = T::default();
        match self.read(object.as_mut_slice()) {
            read if read == size_of::<T>() => Ok(object),
            _ => Err(ChainError::Short(what)),
        }
    }

    /// Copies a structure to the front. `what` names it in the error if it does not fit.
    pub fn write_obj<T: ByteValued>(
        &mut self,
        object: &T,
        what: &'static str,
    ) -> Result<(), ChainError> {
        match self.write(object.as_slice()) {
            written if written == size_of::<T>() => Ok(()),
            _ => Err(ChainError::Short(what)),
        }
    }

    pub fn segments(&self) -> &[GuestSlice<'m>] {
        &self.segments
    }

    /// writev(2) of everything that is left, or pwritev(2) when `offset` is given. Returns the
    /// bytes written and consumes nothing.
    pub fn write_to(&self, file: impl AsFd, offset: Option<u64>) -> io::Result<usize> {
        self.transfer(&file, offset, libc::writev, libc::pwritev)
    }

    /// pwritev2(2) of everything that is left, at `offset` and with RWF flags. Returns the bytes
    /// written and consumes nothing.
    #[expect(unsafe_code, reason = "as `transfer`")]
    pub fn write_with(&self, file: impl AsFd, offset: u64, flags: i32) -> io::Result<usize> {
        let vectors = self.vectors();
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: see `transfer`.
        let result = unsafe {
            let count = vectors.len() as i32;
            libc::pwritev2(fd, vectors.as_ptr(), count, position(offset)?, flags)
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// readv(2) into everything that is left, or preadv(2) when `offset` is given. Returns the
    /// bytes read and consumes nothing.
    pub fn read_from(&self, file: impl AsFd, offset: Option<u64>) -> io::Result<usize> {
        let read = self.transfer(&file, offset, libc::readv, libc::preadv)?;
        let mut left = read;
        for segment in &self.segments {
            let filled = left.min(segment.len());
            segment.bitmap().mark_dirty(0, filled);
            left -= filled;
        }
        Ok(read)
    }

    #[expect(
        unsafe_code,
        reason = "vectored I/O on memory that the guest may change meanwhile"
    )]
    fn transfer(
        &self,
        file: &impl AsFd,
        offset: Option<u64>,
        sequential: unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize,
        positioned: unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize,
    ) -> io::Result<usize> {
        let vectors = self.vectors();
        let fd = file.as_fd().as_raw_fd();
        // MAX_SEGMENTS bounds the count.
        let count = vectors.len() as i32;
        // SAFETY: every vector is a live slice of mapped guest memory, which stays mapped while
        // `self` borrows it. The kernel accesses it as the guest does; no Rust reference to it
        // exists. `fd` is open while `file` is borrowed.
        let result = unsafe {
            match offset {
                None => sequential(fd, vectors.as_ptr(), count),
                Some(offset) => positioned(fd, vectors.as_ptr(), count, position(offset)?),
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    fn vectors(&self) -> SmallVec<[libc::iovec; 4]> {
        let vector = |segment: &GuestSlice<'m>| libc::iovec {
            iov_base: segment.ptr_guard_mut().as_ptr().cast(),
            iov_len: segment.len(),
        };
        self.segments.iter().map(vector).collect()
    }
}

/// An offset as Linux has it; EINVAL from 2^63 on.
fn position(offset: u64) -> io::Result<libc::off_t> {
    offset
        .try_into()
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
