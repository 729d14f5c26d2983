//! Locks of open file descriptions on ranges of a file, F_OFD_SETLK of fcntl_locking(2): as fcntl's
//! locks, but they belong to the open file description instead of to the process.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

use crate::check;

/// What a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// F_RDLCK: writers' locks.
    Shared,
    /// F_WRLCK: every other lock.
    Exclusive,
}

/// A range of bytes, both ends included. One that ends at [`Range::LAST`] has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: i64,
    last: i64,
}

/// A lock of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What it excludes.
    pub kind: Kind,
    /// Where it is.
    pub range: Range,
    /// The process of a POSIX lock, in the caller's pid namespace; none for a lock of an open file
    /// description or of a process outside.
    pub pid: Option<u32>,
}

impl Range {
    /// The highest offset of a file.
    pub const LAST: u64 = i64::MAX as u64;

    /// All of a file, whatever its length.
    pub const ALL: Self = Self {
        first: 0,
        last: i64::MAX,
    };

    /// EINVAL if it ends before it begins, or beyond [`Self::LAST`].
    pub fn new(first: u64, last: u64) -> Result<Self> {
        let offset = |value| i64::try_from(value).map_err(|_| Errno::INVAL);
        let (first, last) = (offset(first)?, offset(last)?);
        if first > last {
            return Err(Errno::INVAL);
        }
        Ok(Self { first, last })
    }

    /// The first byte.
    pub fn first(self) -> u64 {
        self.first.cast_unsigned()
    }

    /// The last byte.
    pub fn last(self) -> u64 {
        self.last.cast_unsigned()
    }

    fn to_flock(self, kind: libc::c_int) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.first,
            l_len: match self.last {
                i64::MAX => 0,
                // At most i64::MAX, because `last` is less than that.
                last => last - self.first + 1,
            },
            l_pid: 0,
        }
    }

    fn of_flock(lock: &libc::flock) -> Self {
        Self {
            first: lock.l_start,
            last: match lock.l_len {
                0 => i64::MAX,
                length => lock.l_start.saturating_add(length - 1),
            },
        }
    }
}

impl Kind {
    fn number(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

/// Locks a range, or fails with EAGAIN if somebody else's lock is in the way.
pub fn try_lock(file: impl AsFd, range: Range, kind: Kind) -> Result<()> {
    control(file, libc::F_OFD_SETLK, &mut range.to_flock(kind.number()))
}

/// Locks a range, and waits until nobody else's lock is in the way. A signal with a handler ends
/// the wait with EINTR.
pub fn lock(file: impl AsFd, range: Range, kind: Kind) -> Result<()> {
    control(file, libc::F_OFD_SETLKW, &mut range.to_flock(kind.number()))
}

/// Unlocks a range.
pub fn unlock(file: impl AsFd, range: Range) -> Result<()> {
    control(file, libc::F_OFD_SETLK, &mut range.to_flock(libc::F_UNLCK))
}

/// The first lock that is in the way of this one, if any.
pub fn conflict(file: impl AsFd, range: Range, kind: Kind) -> Result<Option<Conflict>> {
    let mut lock = range.to_flock(kind.number());
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    let kind = match i32::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Kind::Shared,
        _ => Kind::Exclusive,
    };
    Ok(Some(Conflict {
        kind,
        range: Range::of_flock(&lock),
        pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid != 0),
    }))
}

#[expect(unsafe_code, reason = "fcntl commands that rustix lacks")]
fn control(file: impl AsFd, command: libc::c_int, lock: &mut libc::flock) -> Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the command reads the structure, which is initialized, and may write to it.
    check(unsafe { libc::fcntl(fd, command, std::ptr::from_mut(lock)) }.into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn twice() -> (tempfile::NamedTempFile, File) {
        let first = tempfile::NamedTempFile::new().unwrap();
        let second = File::options().read(true).write(true).open(first.path());
        (first, second.unwrap())
    }

    #[test]
    fn an_exclusive_lock_is_in_the_way_of_another_description() {
        let (first, second) = twice();
        let range = Range::new(10, 19).unwrap();
        try_lock(&first, range, Kind::Exclusive).unwrap();
        let all = Range::ALL;
        assert_eq!(try_lock(&second, all, Kind::Shared), Err(Errno::AGAIN));
        let found = conflict(&second, all, Kind::Shared).unwrap().unwrap();
        assert_eq!((found.range, found.kind), (range, Kind::Exclusive));
        assert_eq!(found.pid, None);
        unlock(&first, all).unwrap();
        assert_eq!(conflict(&second, all, Kind::Shared), Ok(None));
        try_lock(&second, all, Kind::Shared).unwrap();
    }

    #[test]
    fn a_range_has_its_ends_in_order_and_in_a_file() {
        for (first, last, valid) in [
            (0, 0, true),
            (5, 4, false),
            (0, Range::LAST, true),
            (Range::LAST, Range::LAST, true),
            (0, Range::LAST + 1, false),
            (u64::MAX, u64::MAX, false),
        ] {
            let range = Range::new(first, last);
            assert_eq!(range.is_ok(), valid, "{first} {last}");
            if let Ok(range) = range {
                assert_eq!(Range::of_flock(&range.to_flock(0)), range);
            }
        }
    }
}
