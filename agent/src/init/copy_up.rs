//! `tmpcopyup`: a tmpfs that starts with a copy of the directory below it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, openat,
};
use rustix::io::Errno;

use crate::sys::{Doing as _, OsError};

/// How deep directories may be nested: the copy recurses, and an image could exhaust the stack.
const MAX_DEPTH: usize = 128;

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// Copies what is in one directory to another, with owners, permissions and times.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), OsError> {
    let from = openat(from, ".", READ | OFlags::DIRECTORY, Mode::empty())
        .doing(|| "open the directory to copy")?;
    let to = openat(to, ".", READ | OFlags::DIRECTORY, Mode::empty())
        .doing(|| "open the tmpfs to copy to")?;
    copy_directory(&from, &to, 0)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), OsError> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG).doing(|| "copy directories nested without end");
    }
    let entries = Dir::read_from(from).doing(|| "list a directory")?;
    for entry in entries {
        let entry = entry.doing(|| "list a directory")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &std::ffi::CStr,
    depth: usize,
) -> Result<(), OsError> {
    let doing = || format!("copy {}", name.to_string_lossy());
    let status = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).doing(doing)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode).doing(doing)?;
            let source =
                openat(from, name, READ | OFlags::DIRECTORY, Mode::empty()).doing(doing)?;
            let copy = openat(to, name, READ | OFlags::DIRECTORY, Mode::empty()).doing(doing)?;
            copy_directory(&source, &copy, depth + 1)?;
        }
        FileType::RegularFile => copy_file(from, to, name, mode).doing(doing)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new()).doing(doing)?;
            rustix::fs::symlinkat(target, to, name).doing(doing)?;
        }
        // No process listens on the copy of a socket.
        FileType::Socket | FileType::Unknown => return Ok(()),
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
            rustix::fs::mknodat(to, name, kind, mode, status.st_rdev).doing(doing)?;
        }
    }
    copy_status(to, name, kind, &status).doing(doing)
}

fn copy_file(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &std::ffi::CStr,
    mode: Mode,
) -> std::io::Result<()> {
    let source = openat(from, name, READ | OFlags::NONBLOCK, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = openat(to, name, flags, mode)?;
    std::io::copy(
        &mut std::fs::File::from(source),
        &mut std::fs::File::from(copy),
    )
    .map(drop)
}

fn copy_status(
    to: &OwnedFd,
    name: &std::ffi::CStr,
    kind: FileType,
    status: &Stat,
) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to.as_fd(), name, Some(uid), Some(gid), nofollow)?;
    if kind != FileType::Symlink {
        // Changing the owner has cleared set-user-id bits, and the umask may have taken others.
        let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
        rustix::fs::chmodat(to.as_fd(), name, mode, AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as _,
    };
    let times = Timestamps {
        last_access: time(status.st_atime as _, status.st_atime_nsec as _),
        last_modification: time(status.st_mtime as _, status.st_mtime_nsec as _),
    };
    rustix::fs::utimensat(to.as_fd(), name, &times, nofollow)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_links_and_permissions() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("d")).unwrap();
        std::fs::write(from.path().join("d/file"), "text").unwrap();
        let mode = std::fs::Permissions::from_mode(0o4750);
        std::fs::set_permissions(from.path().join("d/file"), mode).unwrap();
        symlink("d/file", from.path().join("link")).unwrap();
        let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
        copy(open(from.path()).as_fd(), open(to.path()).as_fd()).unwrap();
        assert_eq!(
            std::fs::read_to_string(to.path().join("link")).unwrap(),
            "text"
        );
        let status = std::fs::metadata(to.path().join("d/file")).unwrap();
        assert_eq!(status.permissions().mode() & 0o7777, 0o4750);
    }
}
