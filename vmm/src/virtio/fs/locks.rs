//! File locks of the guest's programs, taken on the host's files, so that they hold between the
//! containers that share a volume, and the host.
//!
//! A lock of fcntl(2) belongs to the guest's process, a lock of F_OFD_SETLK to its open file. FUSE
//! names both by a number, the owner. Each owner gets an open file description of its own at the
//! host for each file, on which its locks are locks of that description ([`ofd_locks`]); the lock
//! of flock(2) is one of the description that stands for the guest's open file.
//!
//! The guest releases an owner's locks by FLUSH, which it sends at every close(2), and by RELEASE
//! after the last one: that is the only message at the end of an F_OFD_SETLK lock.
//!
//! Two programs that wait for one another's locks are not told so (EDEADLK).

mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rvm_sys::ofd_locks::{self, Kind, Range};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::fuse::{FileLock, FlushIn, LK_FLOCK, LkIn, LkOut, RELEASE_FLOCK_UNLOCK, ReleaseIn};
use vm_memory::ByteValued;

use super::deferred::{Deferred, Origin, Reply};
use super::files::Files;
use super::front::Outcome;
use super::lend::{server_itself, with_handle};
use super::message::errno;
use super::wait::Waiters;

pub use self::saved::SavedLocks;

/// The locks that the guest holds, by owner. Each owner has a handle of virtiofsd's, whose number
/// is limited with that of the guest's open files.
pub struct Locks {
    fs: Arc<Files>,
    owners: BTreeMap<OwnerId, Owner>,
    /// The inodes and handles on which flock(2) was called.
    flocked: BTreeSet<(u64, u64)>,
    waiters: Waiters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OwnerId {
    inode: u64,
    number: u64,
}

struct Owner {
    /// The handle whose open file description has the locks.
    description: u64,
    /// The guest's handle by which it set a lock last. The owner has no lock when that is released.
    used: u64,
    /// The process of the guest that set a lock last.
    pid: u32,
}

/// A lock that could not be set at once.
pub enum Wanted {
    Range(Range, Kind),
    Whole(FlockOperation),
}

impl Wanted {
    /// Waits for the lock; EINTR after a signal.
    pub fn wait(&self, file: &OwnedFd) -> Result<(), Errno> {
        match *self {
            Self::Range(range, kind) => ofd_locks::lock(file, range, kind),
            Self::Whole(operation) => flock(file, operation),
        }
    }
}

impl Locks {
    pub fn new(fs: Arc<Files>) -> io::Result<Self> {
        Ok(Self {
            fs,
            owners: BTreeMap::new(),
            flocked: BTreeSet::new(),
            waiters: Waiters::new()?,
        })
    }

    /// No owner has a lock of fcntl(2).
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// GETLK: the first lock that is in the way of one.
    pub fn get(&self, inode: u64, request: &LkIn) -> Reply {
        let range = Range::new(request.lk.start, request.lk.end)?;
        let Some(kind) = kind_of(request.lk.type_)? else {
            return Err(Errno::INVAL);
        };
        let id = owner_id(inode, request);
        let handle = self.owners.get(&id).map(|owner| owner.description);
        // Without a description of its own the owner has no lock, and neither has this handle.
        let found = self.with_file(inode, handle.unwrap_or(request.fh), |file| {
            Ok(ofd_locks::conflict(file, range, kind)?)
        })?;
        let lk = match found {
            None => FileLock {
                type_: libc::F_UNLCK as u32,
                ..request.lk
            },
            Some(conflict) => FileLock {
                start: conflict.range.first(),
                end: conflict.range.last(),
                type_: match conflict.kind {
                    Kind::Shared => libc::F_RDLCK as u32,
                    Kind::Exclusive => libc::F_WRLCK as u32,
                },
                // The host's processes have no number in the guest.
                pid: self.only_other_pid(id).unwrap_or(0),
            },
        };
        Ok(LkOut { lk }.as_slice().to_vec())
    }

    /// The process of the only other owner with locks on the file.
    fn only_other_pid(&self, id: OwnerId) -> Option<u32> {
        let all = self.owners.range(owners_of(id.inode));
        let mut others = all.filter(|(other, _)| **other != id);
        let (_, owner) = others.next()?;
        others.next().is_none().then_some(owner.pid)
    }

    /// SETLK and, if `wait`, SETLKW. A lock that cannot be set at once is waited for by a thread of
    /// its own.
    pub fn set(
        &mut self,
        deferred: &mut Deferred,
        origin: Origin,
        inode: u64,
        request: &LkIn,
        wait: bool,
    ) -> Outcome {
        let tried = if request.lk_flags & LK_FLOCK != 0 {
            self.try_flock(inode, request)
        } else {
            self.try_range(inode, request)
        };
        match tried {
            Ok(()) => Outcome::Answered(Ok(Vec::new())),
            Err(Refused::InTheWay(file, wanted)) if wait => {
                match self.waiters.start(deferred, origin, file, wanted) {
                    Ok(()) => Outcome::Later,
                    Err(error) => Outcome::Answered(Err(error)),
                }
            }
            Err(Refused::InTheWay(..)) => Outcome::Answered(Err(Errno::AGAIN)),
            Err(Refused::Failed(error)) => Outcome::Answered(Err(error)),
        }
    }

    fn try_flock(&mut self, inode: u64, request: &LkIn) -> Result<(), Refused> {
        let (now, later) = match kind_of(request.lk.type_)? {
            None => (FlockOperation::NonBlockingUnlock, FlockOperation::Unlock),
            Some(Kind::Shared) => (
                FlockOperation::NonBlockingLockShared,
                FlockOperation::LockShared,
            ),
            Some(Kind::Exclusive) => (
                FlockOperation::NonBlockingLockExclusive,
                FlockOperation::LockExclusive,
            ),
        };
        let tried = self.with_file(inode, request.fh, |file| {
            Ok(match flock(file, now) {
                Err(Errno::AGAIN) => Some(file.try_clone()?),
                done => done.map(|()| None)?,
            })
        })?;
        self.flocked.insert((inode, request.fh));
        in_the_way(tried, Wanted::Whole(later))
    }

    fn try_range(&mut self, inode: u64, request: &LkIn) -> Result<(), Refused> {
        let range = Range::new(request.lk.start, request.lk.end)?;
        let kind = kind_of(request.lk.type_)?;
        let id = owner_id(inode, request);
        let Some(kind) = kind else {
            self.unlock(id, range)?;
            return Ok(());
        };
        let description = self.description(id, request)?;
        let tried = self.with_file(inode, description, |file| {
            Ok(match ofd_locks::try_lock(file, range, kind) {
                Err(Errno::AGAIN | Errno::ACCESS) => Some(file.try_clone()?),
                done => done.map(|()| None)?,
            })
        })?;
        in_the_way(tried, Wanted::Range(range, kind))
    }

    /// The handle with the owner's open file description, opened if need be.
    fn description(&mut self, id: OwnerId, request: &LkIn) -> Result<u64, Errno> {
        // The guest must have the file open; the number of its handle says when the owner goes.
        self.with_file(id.inode, request.fh, |_| Ok(()))?;
        if let Some(owner) = self.owners.get_mut(&id) {
            (owner.used, owner.pid) = (request.fh, request.lk.pid);
            return Ok(owner.description);
        }
        let open = |flags: libc::c_int| {
            (self.fs).open(server_itself(), id.inode, false, flags.cast_unsigned())
        };
        // A file that may only be read gets no exclusive lock, as everywhere.
        let (handle, _) = open(libc::O_RDWR | libc::O_NONBLOCK)
            .or_else(|_| open(libc::O_RDONLY | libc::O_NONBLOCK))
            .map_err(|_| Errno::NOLCK)?;
        let description = handle.ok_or(Errno::NOLCK)?;
        let owner = Owner {
            description,
            used: request.fh,
            pid: request.lk.pid,
        };
        self.owners.insert(id, owner);
        Ok(description)
    }

    fn unlock(&self, id: OwnerId, range: Range) -> Result<(), Errno> {
        let Some(owner) = self.owners.get(&id) else {
            return Ok(());
        };
        self.with_file(id.inode, owner.description, |file| {
            Ok(ofd_locks::unlock(file, range)?)
        })
    }

    /// FLUSH: a close(2) releases the locks of its process on the file.
    pub fn flush(&self, inode: u64, request: &FlushIn) {
        let id = OwnerId {
            inode,
            number: request.lock_owner,
        };
        // The description stays: another thread may wait for a lock on it.
        if let Err(error) = self.unlock(id, Range::ALL) {
            log::debug!("cannot release the locks of a closed file: {error}");
        }
    }

    /// RELEASE: the guest's open file is gone, and with it what was locked by it alone.
    pub fn release(&mut self, inode: u64, request: &ReleaseIn) {
        self.flocked.remove(&(inode, request.fh));
        if request.release_flags & RELEASE_FLOCK_UNLOCK != 0 {
            // A thread that still waits for the lock has the description open, too. The handle may
            // be any number; then nothing is locked by it.
            let _ = self.with_file(inode, request.fh, |file| {
                Ok(flock(file, FlockOperation::NonBlockingUnlock)?)
            });
        }
        let gone: Vec<OwnerId> = (self.owners.range(owners_of(inode)))
            .filter(|(_, owner)| owner.used == request.fh)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(Owner { description, .. }) = self.owners.remove(&id) {
                // It fails if the guest has guessed the handle's number and released it.
                let _ =
                    (self.fs).release(server_itself(), inode, 0, description, false, false, None);
            }
        }
    }

    /// Forgets every owner; virtiofsd closes the handles.
    pub fn clear(&mut self) {
        self.owners.clear();
        self.flocked.clear();
    }

    fn with_file<T>(
        &self,
        inode: u64,
        handle: u64,
        work: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T, Errno> {
        with_handle(self.fs.as_ref(), inode, handle, work).map_err(|error| errno(&error))
    }
}

/// Why a lock was not set.
enum Refused {
    /// Somebody else has a lock. With the open file description to wait on.
    InTheWay(OwnedFd, Wanted),
    Failed(Errno),
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

fn in_the_way(file: Option<File>, wanted: Wanted) -> Result<(), Refused> {
    match file {
        None => Ok(()),
        Some(file) => Err(Refused::InTheWay(file.into(), wanted)),
    }
}

fn owner_id(inode: u64, request: &LkIn) -> OwnerId {
    OwnerId {
        inode,
        number: request.owner,
    }
}

/// Every owner that may have locks on a file.
fn owners_of(inode: u64) -> RangeInclusive<OwnerId> {
    let owner = |number| OwnerId { inode, number };
    owner(0)..=owner(u64::MAX)
}

/// The kind of a lock by its number in the message, `None` for unlocking.
fn kind_of(number: u32) -> Result<Option<Kind>, Errno> {
    match number.cast_signed() {
        libc::F_RDLCK => Ok(Some(Kind::Shared)),
        libc::F_WRLCK => Ok(Some(Kind::Exclusive)),
        libc::F_UNLCK => Ok(None),
        _ => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests;
