//! Which version of a file the guest's page cache is at least as new as.
//!
//! An open that is answered without KEEP_CACHE empties the guest's cache of the file. What is in it
//! afterwards is not older than the version that the file had at that open, and as long as it has that
//! version, the next opens may leave the cache alone. A version is the size, mtime and ctime, which
//! changes with every write and cannot be set back. A file that was changed moments ago may change
//! again and keep all three; it is not remembered.
//!
//! That holds for one inode of the guest's kernel, and opens one after the other. There may be two for one of
//! ours: every mount namespace mounts a mount of the host's that it comes upon (`fuse_dentry_automount`),
//! and such file systems of one connection share inode numbers and not pages. And a second open may be
//! answered before the guest has done what the answer to the first one says. For these, the guest's own
//! rule holds: it drops an inode's pages whenever it hears of another mtime or size (AUTO_INVAL_DATA),
//! and what it knows at an open by name, and at a read(2), is no older than [`SHARED_CACHE_TIMEOUT`]: of a
//! version that is remembered, it has heard. It cannot hear of a change that leaves mtime and size (touch -r,
//! cp -p), so a file that was seen to change so is not kept again as long as the guest holds it.
//!
//! The times do not tell of everything: a program of the host that writes through a shared mapping sets
//! mtime only when it makes a page dirty, and on tmpfs not even then. So the cache is emptied from time
//! to time whatever they say.

use std::collections::BTreeMap;

use rvm_protocol::SHARED_CACHE_TIMEOUT;
use virtiofsd::fuse::Attr;

/// For so long after a change, another may leave the same times: a kernel's clock for files advances
/// every 10 ms or oftener, FAT counts in steps of 2 s, and a server of network files has a clock of
/// its own.
const SETTLED_SECONDS: u64 = 3;

const _: () = assert!(SHARED_CACHE_TIMEOUT.as_secs() < SETTLED_SECONDS);

/// For so long a cache is kept without being emptied. It is the time within which Linux commonly writes
/// back what was changed through a mapping.
const KEPT_SECONDS: u64 = 30;

/// Seconds since 1970, and nanoseconds. Earlier times look like ones far ahead, which count as now.
type Time = (u64, u32);

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Version {
    /// The one that these attributes tell of.
    pub fn of(attributes: &Attr) -> Self {
        Self {
            size: attributes.size,
            mtime: (attributes.mtime, attributes.mtimensec),
            ctime: (attributes.ctime, attributes.ctimensec),
        }
    }

    /// No later change can look the same. mtime counts too: some file systems have no true ctime.
    fn is_settled(&self, now: u64) -> bool {
        let (changed, _) = self.mtime.max(self.ctime);
        changed.saturating_add(SETTLED_SECONDS) < now
    }

    fn looks_the_same_to_the_guest(&self, other: &Self) -> bool {
        (self.size, self.mtime) == (other.size, other.mtime)
    }
}

/// The versions, by inode. They are no more than the inodes that the guest holds, each of which is an
/// open descriptor, of which the guest has a limited number. A hash map would ask for a random seed, which
/// the thread's system call filter forbids.
#[derive(Default)]
pub struct Versions(BTreeMap<u64, Remembered>);

struct Remembered {
    version: Version,
    /// When the cache was emptied last.
    emptied: u64,
    /// There was a change of which the guest cannot hear.
    changed_unheard: bool,
}

impl Versions {
    /// Whether the guest, which is opening this file, may keep what it has cached of it. If not, it is
    /// taken to drop that.
    pub fn may_keep(&mut self, inode: u64, present: Version, now: u64) -> bool {
        if !present.is_settled(now) {
            return false;
        }
        let changed_unheard = match self.0.get(&inode) {
            Some(known) if known.version == present => {
                if !known.changed_unheard && now < known.emptied + KEPT_SECONDS {
                    return true;
                }
                known.changed_unheard
            }
            Some(known) => {
                known.changed_unheard || known.version.looks_the_same_to_the_guest(&present)
            }
            None => false,
        };
        let remembered = Remembered {
            version: present,
            emptied: now,
            changed_unheard,
        };
        self.0.insert(inode, remembered);
        false
    }

    /// Whether something is remembered of the file.
    pub fn knows(&self, inode: u64) -> bool {
        self.0.contains_key(&inode)
    }

    /// The guest does not hold this inode any more.
    pub fn forget(&mut self, inode: u64) {
        self.0.remove(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 7;
    const NOW: u64 = 1_000_000;

    fn version(size: u64, mtime: u64, ctime: u64) -> Version {
        Version {
            size,
            mtime: (mtime, 0),
            ctime: (ctime, 0),
        }
    }

    #[test]
    fn a_version_is_kept_once_it_has_been_seen_settled() {
        let mut versions = Versions::default();
        let present = version(1, 10, NOW);
        let kept: Vec<bool> = [0, SETTLED_SECONDS, SETTLED_SECONDS + 1, 10, 20]
            .map(|later| versions.may_keep(FILE, present, NOW + later))
            .into();
        assert_eq!(kept, [false, false, false, true, true]);
    }

    #[test]
    fn a_cache_is_emptied_from_time_to_time() {
        let mut versions = Versions::default();
        let present = version(1, 10, 10);
        let kept: Vec<bool> = [0, KEPT_SECONDS - 1, KEPT_SECONDS, KEPT_SECONDS + 1]
            .map(|later| versions.may_keep(FILE, present, NOW + later))
            .into();
        assert_eq!(kept, [false, true, false, true]);
    }

    #[test]
    fn each_part_of_a_version_counts() {
        for changed in [version(2, 10, 20), version(1, 11, 20), version(1, 10, 21)] {
            let mut versions = Versions::default();
            assert!(!versions.may_keep(FILE, version(1, 10, 20), NOW));
            assert!(!versions.may_keep(FILE, changed, NOW), "{changed:?}");
        }
    }

    #[test]
    fn a_file_that_has_changed_is_kept_again_later() {
        let mut versions = Versions::default();
        assert!(!versions.may_keep(FILE, version(1, 10, 10), NOW));
        assert!(!versions.may_keep(FILE, version(1, 20, 20), NOW));
        assert!(versions.may_keep(FILE, version(1, 20, 20), NOW));
    }

    #[test]
    fn a_file_that_changed_in_ctime_alone_is_not_kept_until_it_is_forgotten() {
        let mut versions = Versions::default();
        assert!(!versions.may_keep(FILE, version(1, 10, 10), NOW));
        for present in [version(1, 10, 20), version(1, 10, 20), version(2, 30, 30)] {
            assert!(!versions.may_keep(FILE, present, NOW));
        }
        assert!(!versions.may_keep(FILE, version(2, 30, 30), NOW));
        versions.forget(FILE);
        assert!(!versions.may_keep(FILE, version(2, 30, 30), NOW));
        assert!(versions.may_keep(FILE, version(2, 30, 30), NOW));
    }

    #[test]
    fn times_that_have_not_come_and_those_before_1970_are_never_settled() {
        for time in [NOW + 60, u64::MAX, (-1_i64).cast_unsigned()] {
            let mut versions = Versions::default();
            for _ in 0..2 {
                assert!(!versions.may_keep(FILE, version(1, time, 10), NOW));
                assert!(!versions.may_keep(FILE, version(1, 10, time), NOW));
            }
            assert!(!versions.knows(FILE));
        }
    }
}
