//! Decides whether the guest may keep its page cache of a file at an open.
//!
//! An open that is answered without KEEP_CACHE drops the guest's cache of the file. What the guest
//! caches afterwards is not older than the version that the file had at that open; while the file
//! has that version, the next opens may keep the cache. A version is the size, mtime and ctime,
//! which changes with every write and cannot be set back. A file that changed moments ago may
//! change again and keep all three, so its version is not remembered.
//!
//! That holds for one inode of the guest's kernel, and for opens one after the other. The guest may
//! have two inodes for one of ours: every mount namespace mounts a mount of the host's by itself
//! when it finds one (`fuse_dentry_automount`), and such file systems of one connection share inode
//! numbers but not pages. And a second open may be answered before the guest has acted on the
//! answer to the first one. In both cases the guest's own rule applies: it drops an inode's pages
//! when it learns of another mtime or size (AUTO_INVAL_DATA), and the answer to an open has them.
//! It cannot detect a change that keeps mtime and size (touch -r, cp -p); a file that changed so
//! once is not kept again as long as the guest references it.
//!
//! The times do not reveal every change: a program of the host that writes through a shared mapping
//! sets mtime only when it makes a page dirty, and on tmpfs not even then. So the cache is dropped
//! from time to time whatever the times are.
//!
//! The guest may also open a file without a message, if the answer would let it keep its cache and
//! tell it nothing new: it asks by a port (`numbers.rs`) whether that is so, and opens the file
//! when it needs something of it. The rule is the one above, at that moment.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use virtiofsd::fuse::Attr;

use super::numbers::{Number, Numbers};

/// How long after a change a second one may leave the same times: FAT has a granularity of 2 s, and
/// a network file server has a clock of its own.
const SETTLED: Duration = Duration::from_secs(3);

/// The same for file systems that have the kernel's clock for file times, which advances every
/// 10 ms or more often.
const SETTLED_LOCALLY: Duration = Duration::from_millis(100);

/// The longest time for which a cache is kept. Within it Linux commonly writes back changes that
/// were made through a mapping.
const KEPT: Duration = Duration::from_secs(30);

/// Seconds since 1970, and nanoseconds. Earlier times look like times far in the future.
type Time = (u64, u32);

/// The attributes by which a change of a file is detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Version {
    pub fn of(attributes: &Attr) -> Self {
        Self {
            size: attributes.size,
            mtime: (attributes.mtime, attributes.mtimensec),
            ctime: (attributes.ctime, attributes.ctimensec),
        }
    }

    /// Whether every later change gives another version, if that takes so long. mtime counts too,
    /// because some file systems have no true ctime.
    fn is_settled(&self, now: Duration, after: Duration) -> bool {
        let (seconds, nanoseconds) = self.mtime.max(self.ctime);
        let changed =
            Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds.into()));
        changed
            .and_then(|time| time.checked_add(after))
            .is_some_and(|settled| settled < now)
    }

    fn looks_equal_to_the_guest(&self, other: &Self) -> bool {
        (self.size, self.mtime) == (other.size, other.mtime)
    }
}

/// The remembered versions, by inode. There are no more than inodes that the guest references, each
/// of which is an open descriptor, whose number is limited.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Versions {
    files: BTreeMap<u64, Remembered>,
    numbers: Numbers,
}

#[derive(Clone, Serialize, Deserialize)]
struct Remembered {
    version: Version,
    /// When the guest last dropped its cache, since 1970.
    dropped: Duration,
    /// There was a change that the guest cannot detect.
    changed_undetected: bool,
    /// By which the guest knows this version.
    number: Option<Number>,
}

impl Remembered {
    /// Whether the guest may keep its cache, while the file has this version.
    fn may_keep(&self, present: Version, now: Duration) -> bool {
        self.version == present && !self.changed_undetected && now < self.dropped + KEPT
    }
}

impl Versions {
    /// Whether the guest may keep its cache of the file that it is opening. If not, the guest is
    /// assumed to drop the cache now. `now` counts from 1970; `is_local` tells whether the file's
    /// times are those of the kernel's clock.
    pub fn may_keep(
        &mut self,
        inode: u64,
        present: Version,
        now: Duration,
        is_local: impl FnOnce() -> bool,
    ) -> bool {
        let is_settled = present.is_settled(now, SETTLED)
            || present.is_settled(now, SETTLED_LOCALLY) && is_local();
        if !is_settled {
            return false;
        }
        let changed_undetected = match self.files.get(&inode) {
            Some(known) if known.may_keep(present, now) => return true,
            Some(known) if known.version == present => known.changed_undetected,
            Some(known) => {
                known.changed_undetected || known.version.looks_equal_to_the_guest(&present)
            }
            None => false,
        };
        let remembered = Remembered {
            version: present,
            dropped: now,
            changed_undetected,
            number: None,
        };
        self.remove(inode);
        self.files.insert(inode, remembered);
        false
    }

    /// The number by which the guest may ask for the version that it has been told of now, if it
    /// is remembered.
    pub fn number(&mut self, inode: u64, present: Version) -> Option<Number> {
        let known = self.files.get_mut(&inode)?;
        if known.version != present || known.changed_undetected {
            return None;
        }
        if known.number.is_none() {
            let (number, former) = self.numbers.give(inode)?;
            known.number = Some(number);
            if let Some(former) = former.and_then(|inode| self.files.get_mut(&inode)) {
                former.number = None;
            }
        }
        self.files.get(&inode)?.number
    }

    /// The inode whose version is asked for by a port.
    pub fn asked(&self, port: u16) -> Option<u64> {
        self.numbers.inode(port)
    }

    /// The answer: the number's value, if the guest may keep its cache of the file, which has the
    /// version `present`.
    pub fn answer(&self, port: u16, inode: u64, present: Version, now: Duration) -> Option<u32> {
        let known = self.files.get(&inode)?;
        let number = known.number.filter(|number| number.port == port)?;
        let may_keep = present.is_settled(now, SETTLED_LOCALLY) && known.may_keep(present, now);
        may_keep.then_some(number.value)
    }

    /// Those of a saved state, which may be damaged, of the files that are the same still.
    pub fn restored(self, now: Duration, is_same: impl Fn(u64) -> bool) -> Self {
        let mut files = self.files;
        files.retain(|inode, _| is_same(*inode));
        for remembered in files.values_mut() {
            remembered.dropped = remembered.dropped.min(now);
        }
        let numbered = files.iter();
        let numbered = numbered.filter_map(|(inode, known)| Some((*inode, known.number?)));
        let numbers = self.numbers.restored(numbered);
        Self { files, numbers }
    }

    /// Forgets every inode: the guest references none any more.
    pub fn clear(&mut self) {
        self.files.clear();
        self.numbers.clear();
    }

    pub fn contains(&self, inode: u64) -> bool {
        self.files.contains_key(&inode)
    }

    /// Removes an inode that the guest no longer references.
    pub fn remove(&mut self, inode: u64) {
        if let Some(number) = self.files.remove(&inode).and_then(|known| known.number) {
            self.numbers.take_back(number.port, inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 7;
    const NOW: u64 = 1_000_000;

    /// On a file system with a clock of its own.
    fn may_keep(versions: &mut Versions, present: Version, now: u64) -> bool {
        versions.may_keep(FILE, present, Duration::from_secs(now), || false)
    }

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
        let kept: Vec<bool> = [0, SETTLED.as_secs(), SETTLED.as_secs() + 1, 10, 20]
            .map(|later| may_keep(&mut versions, present, NOW + later))
            .into();
        assert_eq!(kept, [false, false, false, true, true]);
    }

    fn answer(versions: &Versions, number: Number, present: Version) -> Option<u32> {
        versions.answer(number.port, FILE, present, Duration::from_secs(NOW))
    }

    #[test]
    fn a_number_stands_for_one_version() {
        let mut versions = Versions::default();
        let (old, new) = (version(1, 10, 10), version(1, 20, 20));
        assert!(!may_keep(&mut versions, old, NOW));
        let number = versions.number(FILE, old).unwrap();
        assert_eq!(answer(&versions, number, old), Some(number.value));
        assert_eq!(answer(&versions, number, new), None);
        assert_eq!(versions.number(FILE, new), None, "nobody was told of it");
        assert!(!may_keep(&mut versions, new, NOW));
        assert_eq!(versions.asked(number.port), None);
        assert_ne!(versions.number(FILE, new), Some(number));
    }

    #[test]
    fn what_changed_undetected_has_no_number() {
        let mut versions = Versions::default();
        assert!(!may_keep(&mut versions, version(1, 10, 10), NOW));
        assert!(!may_keep(&mut versions, version(1, 10, 20), NOW));
        assert_eq!(versions.number(FILE, version(1, 10, 20)), None);
    }

    #[test]
    fn a_restored_number_stands_for_its_version_if_the_file_is_the_same() {
        let mut versions = Versions::default();
        let present = version(1, 10, 10);
        assert!(!may_keep(&mut versions, present, NOW));
        let number = versions.number(FILE, present).unwrap();
        let saved = postcard::to_allocvec(&versions).unwrap();
        let restored = |is_same: bool| {
            let saved: Versions = postcard::from_bytes(&saved).unwrap();
            saved.restored(Duration::from_secs(NOW), |_| is_same)
        };
        let mut same = restored(true);
        assert_eq!(same.asked(number.port), Some(FILE));
        assert_eq!(answer(&same, number, present), Some(number.value));
        assert_eq!(answer(&same, number, version(2, 10, 10)), None);
        assert_eq!(restored(false).asked(number.port), None);
        same.remove(FILE);
        assert!(!may_keep(&mut same, present, NOW));
        assert_ne!(
            same.number(FILE, present),
            Some(number),
            "none is given again"
        );
    }

    #[test]
    fn a_file_with_the_kernels_times_is_kept_sooner() {
        let mut versions = Versions::default();
        let present = version(1, 10, NOW);
        let kept: Vec<bool> = [0, 100, 101, 110, 4000]
            .map(|later| {
                let now = Duration::from_secs(NOW) + Duration::from_millis(later);
                versions.may_keep(FILE, present, now, || true)
            })
            .into();
        assert_eq!(kept, [false, false, false, true, true]);
    }

    #[test]
    fn a_cache_is_dropped_from_time_to_time() {
        let mut versions = Versions::default();
        let present = version(1, 10, 10);
        let kept: Vec<bool> = [0, KEPT.as_secs() - 1, KEPT.as_secs(), KEPT.as_secs() + 1]
            .map(|later| may_keep(&mut versions, present, NOW + later))
            .into();
        assert_eq!(kept, [false, true, false, true]);
    }

    #[test]
    fn each_part_of_a_version_counts() {
        for changed in [version(2, 10, 20), version(1, 11, 20), version(1, 10, 21)] {
            let mut versions = Versions::default();
            assert!(!may_keep(&mut versions, version(1, 10, 20), NOW));
            assert!(!may_keep(&mut versions, changed, NOW), "{changed:?}");
        }
    }

    #[test]
    fn a_file_that_has_changed_is_kept_again_later() {
        let mut versions = Versions::default();
        assert!(!may_keep(&mut versions, version(1, 10, 10), NOW));
        assert!(!may_keep(&mut versions, version(1, 20, 20), NOW));
        assert!(may_keep(&mut versions, version(1, 20, 20), NOW));
    }

    #[test]
    fn a_file_that_changed_in_ctime_alone_is_not_kept_until_it_is_forgotten() {
        let mut versions = Versions::default();
        assert!(!may_keep(&mut versions, version(1, 10, 10), NOW));
        for present in [version(1, 10, 20), version(1, 10, 20), version(2, 30, 30)] {
            assert!(!may_keep(&mut versions, present, NOW));
        }
        assert!(!may_keep(&mut versions, version(2, 30, 30), NOW));
        versions.remove(FILE);
        assert!(!may_keep(&mut versions, version(2, 30, 30), NOW));
        assert!(may_keep(&mut versions, version(2, 30, 30), NOW));
    }

    #[test]
    fn times_in_the_future_and_before_1970_are_never_settled() {
        for time in [NOW + 60, u64::MAX, (-1_i64).cast_unsigned()] {
            let mut versions = Versions::default();
            for _ in 0..2 {
                assert!(!may_keep(&mut versions, version(1, time, 10), NOW));
                assert!(!may_keep(&mut versions, version(1, 10, time), NOW));
            }
            assert!(!versions.contains(FILE));
        }
    }
}
