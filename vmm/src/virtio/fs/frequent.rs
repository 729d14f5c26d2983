//! Frequent requests that need little of virtiofsd: its server would walk their descriptors twice
//! more, which costs as much as what is left to do.

use std::ffi::CStr;

use virtiofsd::filesystem::FileSystem;
use virtiofsd::fuse::{ForgetIn, InHeader, RELEASE_FLOCK_UNLOCK, RELEASE_FLUSH, ReleaseIn};

use super::close_to_open::CloseToOpen;
use super::deferred::Reply;
use super::front::Outcome;
use super::message::{errno, take};
use crate::virtio::chain::Buffers;

/// NAME_MAX, and the NUL that follows the name.
const NAME_BYTES: usize = 256;

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
pub fn unlink(fs: &CloseToOpen, header: &InHeader, mut body: Buffers<'_>) -> Outcome {
    let mut bytes = [0; NAME_BYTES];
    let length = body.read(&mut bytes);
    match CStr::from_bytes_with_nul(&bytes[..length]) {
        Ok(name) if body.is_empty() => {
            Outcome::Answered(done(fs.unlink((*header).into(), header.nodeid, name)))
        }
        _ => Outcome::Passed,
    }
}

fn done(result: std::io::Result<()>) -> Reply {
    result.map(|()| Vec::new()).map_err(|error| errno(&error))
}
