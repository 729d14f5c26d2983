//! Calls on an open file that both the guest and the host speak of in structures of their own.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use virtiofsd::filesystem::SetattrValid;
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::credentials::drop_effective_cap;

/// Has the host's kernel clear setuid and setgid from files that are written to meanwhile.
pub(super) fn without_setid(wanted: bool) -> io::Result<Option<impl Sized>> {
    match wanted {
        true => drop_effective_cap("FSETID"),
        false => Ok(None),
    }
}

/// The name of an open file in /proc/self/fd.
pub fn number(file: &File) -> io::Result<CString> {
    CString::new(file.as_raw_fd().to_string()).map_err(io::Error::from)
}

pub(super) fn times(wanted: &SetattrIn, valid: SetattrValid) -> Timestamps {
    let time = |set, now, seconds: u64, nanoseconds: u32| Timespec {
        tv_sec: seconds.cast_signed(),
        tv_nsec: match (valid.contains(set), valid.contains(now)) {
            (_, true) => UTIME_NOW,
            (true, false) => nanoseconds.into(),
            (false, false) => UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: time(
            SetattrValid::ATIME,
            SetattrValid::ATIME_NOW,
            wanted.atime,
            wanted.atimensec,
        ),
        last_modification: time(
            SetattrValid::MTIME,
            SetattrValid::MTIME_NOW,
            wanted.mtime,
            wanted.mtimensec,
        ),
    }
}

#[expect(unsafe_code, reason = "virtiofsd has the C library's structure")]
pub(super) fn statvfs(file: BorrowedFd<'_>) -> io::Result<libc::statvfs64> {
    // SAFETY: the structure is plain integers.
    let mut found = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one structure.
    rvm_sys::check(unsafe { libc::fstatvfs64(file.as_raw_fd(), &raw mut found) }.into())?;
    Ok(found)
}

pub(super) fn attributes(file: &File) -> io::Result<Attr> {
    let found = rustix::fs::fstat(file)?;
    Ok(Attr {
        ino: found.st_ino,
        size: found.st_size.cast_unsigned(),
        blocks: found.st_blocks.cast_unsigned(),
        atime: found.st_atime.cast_unsigned(),
        mtime: found.st_mtime.cast_unsigned(),
        ctime: found.st_ctime.cast_unsigned(),
        // Nanoseconds, links and block sizes are far smaller than 32 bits.
        atimensec: found.st_atime_nsec as u32,
        mtimensec: found.st_mtime_nsec as u32,
        ctimensec: found.st_ctime_nsec as u32,
        mode: found.st_mode,
        nlink: found.st_nlink as u32,
        uid: found.st_uid.into(),
        gid: found.st_gid.into(),
        rdev: 0,
        blksize: found.st_blksize as u32,
        flags: 0,
    })
}
