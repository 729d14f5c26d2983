//! Frequent requests that need little of virtiofsd: its server would walk their descriptors twice
//! more, which costs as much as what is left to do.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::io::Errno;
use virtiofsd::filesystem::{FileSystem, ZeroCopyReader};
use virtiofsd::fuse::{
    EntryOut, ForgetIn, InHeader, RELEASE_FLOCK_UNLOCK, RELEASE_FLUSH, ReleaseIn, WRITE_CACHE,
    WRITE_KILL_PRIV, WRITE_LOCKOWNER, WriteIn, WriteOut,
};
use virtiofsd::oslib::WritevFlags;
use vm_memory::ByteValued;

use super::close_to_open::CloseToOpen;
use super::deferred::Reply;
use super::front::Outcome;
use super::message::{errno, take};
use crate::virtio::chain::Buffers;

/// NAME_MAX, and the NUL that follows the name.
const NAME_BYTES: usize = 256;

/// The most bytes of a WRITE, which virtiofsd's answer to INIT tells the guest.
const MAX_WRITE: usize = 1 << 20;

/// Executes a FORGET; virtiofsd refuses one that is malformed.
pub fn forget(fs: &CloseToOpen, header: &InHeader, mut body: Buffers<'_>) -> Outcome {
    let Ok(ForgetIn { nlookup }) = take(&mut body) else {
        return Outcome::Passed;
    };
    fs.forget((*header).into(), header.nodeid, nlookup);
    Outcome::Silent
}

pub fn release(fs: &CloseToOpen, header: &InHeader, request: &ReleaseIn) -> Reply {
    let flushes = request.release_flags & RELEASE_FLUSH != 0;
    let unlocks = request.release_flags & RELEASE_FLOCK_UNLOCK != 0;
    let released = fs.release(
        (*header).into(),
        header.nodeid,
        request.flags,
        request.fh,
        flushes,
        unlocks,
        (flushes || unlocks).then_some(request.lock_owner),
    );
    done(released)
}

/// Executes an UNLINK; virtiofsd refuses one that is malformed.
pub fn unlink(fs: &CloseToOpen, header: &InHeader, body: Buffers<'_>) -> Outcome {
    with_name(body, |name| {
        done(fs.unlink((*header).into(), header.nodeid, name))
    })
}

/// Executes a LOOKUP; virtiofsd refuses one that is malformed.
pub fn lookup(fs: &CloseToOpen, header: &InHeader, body: Buffers<'_>) -> Outcome {
    with_name(body, |name| {
        let found = fs.lookup((*header).into(), header.nodeid, name);
        answer(found.map(EntryOut::from))
    })
}

/// Executes a WRITE of at most [`MAX_WRITE`] bytes.
pub fn write(fs: &CloseToOpen, header: &InHeader, mut body: Buffers<'_>) -> Reply {
    let request: WriteIn = take(&mut body)?;
    if body.len() > MAX_WRITE {
        return Err(Errno::INVAL);
    }
    let has = |flag| request.write_flags & flag != 0;
    let written = fs.write(
        (*header).into(),
        header.nodeid,
        request.fh,
        Data(body),
        request.size,
        request.offset,
        has(WRITE_LOCKOWNER).then_some(request.lock_owner),
        has(WRITE_CACHE),
        has(WRITE_KILL_PRIV),
        request.flags,
    );
    answer(written.map(|bytes| WriteOut {
        // MAX_WRITE bounds it.
        size: bytes as u32,
        ..WriteOut::default()
    }))
}

/// What a guest writes to a file.
struct Data<'m>(Buffers<'m>);

impl ZeroCopyReader for Data<'_> {
    /// An error after the first bytes is that of the next request, as with write(2).
    fn write_to_file_at(
        &mut self,
        file: &File,
        count: usize,
        offset: u64,
        flags: Option<WritevFlags>,
    ) -> io::Result<usize> {
        let flags = flags.map_or(0, |flags| flags.bits());
        let mut rest = split_to(&mut self.0, count)?;
        let mut written = 0;
        while !rest.is_empty() {
            match rest.write_with(file, offset + written as u64, flags) {
                Ok(0) => break,
                Ok(bytes) => {
                    split_to(&mut rest, bytes)?;
                    written += bytes;
                }
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(written)
    }
}

fn split_to<'m>(buffers: &mut Buffers<'m>, bytes: usize) -> io::Result<Buffers<'m>> {
    let bytes = bytes.min(buffers.len());
    buffers.split_to(bytes).map_err(io::Error::other)
}

/// Calls `execute` with the name that a request consists of.
fn with_name(mut body: Buffers<'_>, execute: impl FnOnce(&CStr) -> Reply) -> Outcome {
    let mut bytes = [0; NAME_BYTES];
    let length = body.read(&mut bytes);
    match CStr::from_bytes_with_nul(&bytes[..length]) {
        Ok(name) if body.is_empty() => Outcome::Answered(execute(name)),
        _ => Outcome::Passed,
    }
}

fn answer<T: ByteValued>(result: io::Result<T>) -> Reply {
    result
        .map(|answer| answer.as_slice().to_vec())
        .map_err(|error| errno(&error))
}

fn done(result: io::Result<()>) -> Reply {
    result.map(|()| Vec::new()).map_err(|error| errno(&error))
}

#[cfg(test)]
mod tests;
