//! The descriptors that a program inherits from its caller beyond the standard streams.
//!
//! A caller may leave any descriptor open by accident, such as one of the host's root directory,
//! and what a program executes inherits it in turn.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io;

use crate::check;

/// The first descriptor after the standard streams.
const FIRST: RawFd = 3;

/// Marks every inherited descriptor close-on-exec, but those in `kept`.
pub fn close_on_exec_except(kept: &[RawFd]) -> io::Result<()> {
    const CLOEXEC: libc::c_uint = libc::CLOSE_RANGE_CLOEXEC;
    for (first, last) in ranges_between(kept) {
        match close_range(first, last, CLOEXEC) {
            // Before Linux 5.9, or 5.11 for the flag.
            Err(io::Errno::NOSYS | io::Errno::INVAL) => mark_one_by_one(first, last)?,
            other => other?,
        }
    }
    Ok(())
}

/// Closes every inherited descriptor.
///
/// # Safety
///
/// Nothing in the process may own a descriptor beyond the standard streams: it is called before
/// anything is opened.
#[expect(unsafe_code, reason = "closes descriptors by number")]
pub unsafe fn close_all() -> io::Result<()> {
    match close_range(FIRST, RawFd::MAX, 0) {
        Err(io::Errno::NOSYS) => {
            for number in open_descriptors(FIRST, RawFd::MAX)? {
                // SAFETY: the caller promises that nothing owns it.
                unsafe { libc::close(number) };
            }
            Ok(())
        }
        other => other,
    }
}

/// Closes every descriptor but `kept`, in a child that is a copy of a process. Allocates nothing.
/// Fails with [`io::Errno::NOSYS`] before Linux 5.9.
///
/// # Safety
///
/// What owns a descriptor in the child's memory must not be used or dropped.
#[expect(unsafe_code, reason = "closes descriptors by number")]
pub unsafe fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd();
    if kept > 0 {
        close_range(0, kept - 1, 0)?;
    }
    close_range(kept.saturating_add(1), RawFd::MAX, 0)
}

/// The ranges of numbers from [`FIRST`] on, both ends included, that hold none of `kept`.
fn ranges_between(kept: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let mut kept: Vec<RawFd> = kept.iter().copied().filter(|fd| *fd >= FIRST).collect();
    kept.sort_unstable();
    let mut ranges = Vec::new();
    let mut first = FIRST;
    for fd in kept {
        if fd > first {
            ranges.push((first, fd - 1));
        }
        first = fd.saturating_add(1);
    }
    ranges.push((first, RawFd::MAX));
    ranges
}

#[expect(unsafe_code, reason = "a system call that rustix lacks")]
fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing; without it, the callers promise
    // that nothing that owns the descriptors is used.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

#[expect(unsafe_code, reason = "descriptors by number")]
fn mark_one_by_one(first: RawFd, last: RawFd) -> io::Result<()> {
    for number in open_descriptors(first, last)? {
        // SAFETY: fcntl takes any number, and changes no more than the flag.
        // It fails for the descriptor by which /proc was read, which is closed already.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// The numbers of the open descriptors from `first` to `last`.
fn open_descriptors(first: RawFd, last: RawFd) -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|_| io::Errno::NOENT)?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| (first..=last).contains(number))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    #[test]
    fn the_ranges_leave_out_what_is_kept() {
        assert_eq!(ranges_between(&[]), [(3, RawFd::MAX)]);
        assert_eq!(ranges_between(&[0, 3, 4]), [(5, RawFd::MAX)]);
        assert_eq!(ranges_between(&[9, 5]), [(3, 4), (6, 8), (10, RawFd::MAX)]);
    }

    /// As on an old kernel.
    fn mark_all_one_by_one(kept: &[RawFd]) -> io::Result<()> {
        let mut ranges = ranges_between(kept).into_iter();
        ranges.try_for_each(|(first, last)| mark_one_by_one(first, last))
    }

    #[test]
    fn a_descriptor_is_marked_unless_it_is_kept_by_both_ways() {
        for way in [close_on_exec_except, mark_all_one_by_one] {
            let (kept, leaked) = (File::open("/").unwrap(), File::open("/").unwrap());
            // Other tests' descriptors are close-on-exec already.
            for file in [&kept, &leaked] {
                fcntl_setfd(file, FdFlags::empty()).unwrap();
            }
            way(&[kept.as_raw_fd()]).unwrap();
            assert_eq!(fcntl_getfd(&kept).unwrap(), FdFlags::empty());
            assert_eq!(fcntl_getfd(&leaked).unwrap(), FdFlags::CLOEXEC);
        }
    }
}
