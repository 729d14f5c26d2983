//! The locks in a saved state. The host's kernel tells which an open file has (proc_pid_fdinfo(5));
//! they are set again when the state is restored.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsRawFd;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use rvm_sys::ofd_locks::{self, Kind, Range};
use serde::{Deserialize, Serialize};

use super::{Locks, Owner, OwnerId};

/// The most bytes that are read of what the kernel tells of a descriptor: some ten thousand locks.
const FDINFO_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedLocks {
    owners: Vec<SavedOwner>,
    held: Vec<Held>,
}

/// See [`Owner`].
#[derive(Debug, Serialize, Deserialize)]
struct SavedOwner {
    inode: u64,
    number: u64,
    description: u64,
    used: u64,
    pid: u32,
}

/// A lock that a handle has.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    inode: u64,
    handle: u64,
    is_exclusive: bool,
    /// The first byte and the last one; all of the file for a lock of flock(2).
    range: Option<(u64, u64)>,
}

/// A lock could not be set again.
#[derive(Debug)]
pub struct NotLocked {
    pub inode: u64,
    pub error: Errno,
}

impl Locks {
    /// What is locked, by /proc/self/fdinfo.
    pub fn saved(&self, infos: &File) -> io::Result<SavedLocks> {
        let mut saved = SavedLocks::default();
        for (id, owner) in &self.owners {
            saved.owners.push(SavedOwner {
                inode: id.inode,
                number: id.number,
                description: owner.description,
                used: owner.used,
                pid: owner.pid,
            });
        }
        let owners = (self.owners.iter()).map(|(id, owner)| (id.inode, owner.description));
        let handles = owners.chain(self.flocked.iter().copied());
        for (inode, handle) in handles {
            let found = self.with_file(inode, handle, |file| locks_of(infos, file));
            // A handle that the guest has released without a word about locks.
            if matches!(found, Err(Errno::BADF)) {
                continue;
            }
            let held = found?.into_iter().map(|(is_exclusive, range)| Held {
                inode,
                handle,
                is_exclusive,
                range,
            });
            saved.held.extend(held);
        }
        Ok(saved)
    }

    /// Sets the locks again. The handles are open.
    pub fn restore(&mut self, saved: SavedLocks) -> Result<(), NotLocked> {
        for owner in saved.owners {
            let id = OwnerId {
                inode: owner.inode,
                number: owner.number,
            };
            let owner = Owner {
                description: owner.description,
                used: owner.used,
                pid: owner.pid,
            };
            self.owners.insert(id, owner);
        }
        for held in saved.held {
            let (inode, handle) = (held.inode, held.handle);
            let set = self.with_file(inode, handle, |file| Ok(held.set(file)?));
            set.map_err(|error| NotLocked { inode, error })?;
            if held.range.is_none() {
                self.flocked.insert((inode, handle));
            }
        }
        Ok(())
    }
}

impl Held {
    fn set(&self, file: &File) -> Result<(), Errno> {
        match (self.range, self.is_exclusive) {
            (None, true) => flock(file, FlockOperation::NonBlockingLockExclusive),
            (None, false) => flock(file, FlockOperation::NonBlockingLockShared),
            (Some((first, last)), is_exclusive) => {
                let kind = match is_exclusive {
                    true => Kind::Exclusive,
                    false => Kind::Shared,
                };
                ofd_locks::try_lock(file, Range::new(first, last)?, kind)
            }
        }
    }
}

/// What a lock excludes and its range, as in [`Held`].
type Lock = (bool, Option<(u64, u64)>);

fn locks_of(infos: &File, file: &File) -> io::Result<Vec<Lock>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let number = file.as_raw_fd().to_string();
    let info = File::from(openat(infos, number, flags, Mode::empty())?);
    let mut text = String::new();
    info.take(FDINFO_BYTES).read_to_string(&mut text)?;
    Ok(text.lines().filter_map(parse).collect())
}

/// Reads a line such as `lock: 1: OFDLCK  ADVISORY  WRITE -1 08:01:4711 0 EOF`.
fn parse(line: &str) -> Option<Lock> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    let is_of_range = match words.next()? {
        "FLOCK" => false,
        "OFDLCK" => true,
        _ => return None,
    };
    let is_exclusive = words.nth(1)? == "WRITE";
    let first = words.nth(2)?.parse().ok()?;
    let last = match words.next()? {
        "EOF" => Range::LAST,
        last => last.parse().ok()?,
    };
    Some((is_exclusive, is_of_range.then_some((first, last))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_understood() {
        for (line, lock) in [
            (
                "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF",
                Some((true, None)),
            ),
            (
                "lock:\t2: FLOCK  ADVISORY  READ 359 00:13:11691 0 EOF",
                Some((false, None)),
            ),
            (
                "lock:\t1: OFDLCK ADVISORY  READ -1 08:01:47 5 99",
                Some((false, Some((5, 99)))),
            ),
            (
                "lock:\t1: OFDLCK ADVISORY  WRITE -1 08:01:47 0 EOF",
                Some((true, Some((0, Range::LAST)))),
            ),
            (
                "lock:\t1: LEASE  ACTIVE    READ 359 00:13:11691 0 EOF",
                None,
            ),
            ("pos:\t0", None),
            ("lock:\t1: OFDLCK", None),
            ("lock:\t1: OFDLCK ADVISORY WRITE -1 08:01:47 -5 EOF", None),
        ] {
            assert_eq!(parse(line), lock, "{line:?}");
        }
    }

    #[test]
    fn the_kernel_tells_of_both_kinds_of_locks() {
        let infos = File::open("/proc/self/fdinfo").unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(locks_of(&infos, &file).unwrap(), []);
        let range = Range::new(3, 8).unwrap();
        ofd_locks::try_lock(&file, range, Kind::Exclusive).unwrap();
        flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
        let mut found = locks_of(&infos, &file).unwrap();
        found.sort();
        assert_eq!(found, [(false, None), (true, Some((3, 8)))]);
    }
}
