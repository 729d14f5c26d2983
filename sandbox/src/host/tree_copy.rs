//! Copies of directory trees: with owners, modes, times, extended attributes, hard links, holes and
//! special files. Files share their blocks with the originals where the file system can (FICLONE).
//!
//! The tree may be a guest's work, and another guest may change it meanwhile: no link is followed,
//! nothing is looked up but in the directory that was opened, and depth and hard links are bounded.
//! What is mounted in it is left out. The copy is the caller's alone until it is done.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec,
    Timestamps, Uid, XattrFlags, chmodat, chownat, copy_file_range, ioctl_ficlone, lgetxattr,
    linkat, llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;
use rvm_sys::beneath;

/// How deep directories may be nested. Each level takes three descriptors.
const MAX_DEPTH: usize = 200;

/// How many files with several names there may be: each takes the memory of its path.
const MAX_LINKED: usize = 1 << 20;

/// The longest value of an extended attribute, and the longest list of names; see xattr(7).
const MAX_XATTR: usize = 64 << 10;

/// How much is copied at a time where the kernel cannot do it.
const PIECE: usize = 1 << 20;

const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// A tree could not be copied. With the path in it.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {}", path.display())]
pub struct CopyError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies the directory `from` to `to`, which is made.
pub fn copy(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |error: Errno| CopyError {
        path: from.to_owned(),
        source: error.into(),
    };
    let made = mkdirat(CWD, to, Mode::RWXU).and_then(|()| Ok((open_dir(from)?, open_dir(to)?)));
    let (from_root, to_root) = made.map_err(failed)?;
    let mut copying = Copying {
        from,
        to_root: to_root.as_fd(),
        linked: HashMap::new(),
    };
    copying.directory(from_root.as_fd(), to_root.as_fd(), Path::new(""), 0)?;
    let status = statat(&from_root, c".", NOFOLLOW).map_err(failed)?;
    let place = Place {
        from: from_root.as_fd(),
        to: to_root.as_fd(),
        name: c".",
    };
    place.finish(&status).map_err(failed)
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

struct Copying<'a> {
    from: &'a Path,
    to_root: BorrowedFd<'a>,
    /// The first copy of each file that has several names, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

/// An entry of a directory, and where its copy is to be.
#[derive(Clone, Copy)]
struct Place<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    name: &'a CStr,
}

impl Copying<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        let failed = |path: &Path, error: Errno| CopyError {
            path: self.from.join(path),
            source: error.into(),
        };
        if depth > MAX_DEPTH {
            return Err(failed(path, Errno::NAMETOOLONG));
        }
        let entries = Dir::read_from(from).map_err(|error| failed(path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(path, error))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let place = Place { from, to, name };
            let status = statat(from, name, NOFOLLOW).map_err(|error| failed(&path, error))?;
            let opened = match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => place.make_directory(),
                _ => self.entry(place, &path, &status).map(|()| None),
            };
            let opened = opened.map_err(|error| failed(&path, error))?;
            if let Some((from, to)) = opened {
                self.directory(from.as_fd(), to.as_fd(), &path, depth + 1)?;
            }
            let failed = |error: Errno| CopyError {
                path: self.from.join(&path),
                source: error.into(),
            };
            place.finish(&status).map_err(failed)?;
        }
        Ok(())
    }

    /// Copies what is no directory.
    fn entry(&mut self, place: Place<'_>, path: &Path, status: &Stat) -> rustix::io::Result<()> {
        let key = (status.st_dev, status.st_ino);
        if status.st_nlink > 1 {
            if let Some(first) = self.linked.get(&key) {
                return linkat(self.to_root, first, place.to, place.name, AtFlags::empty());
            }
            if self.linked.len() >= MAX_LINKED {
                return Err(Errno::MLINK);
            }
            self.linked.insert(key, path.to_owned());
        }
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => place.copy_file(),
            FileType::Symlink => {
                let target = readlinkat(place.from, place.name, Vec::new())?;
                symlinkat(target, place.to, place.name)
            }
            kind => mknodat(place.to, place.name, kind, Mode::RUSR, status.st_rdev),
        }
    }
}

impl Place<'_> {
    /// Makes a directory; returns both, unless something is mounted there.
    fn make_directory(self) -> rustix::io::Result<Option<(OwnedFd, OwnedFd)>> {
        mkdirat(self.to, self.name, Mode::RWXU)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Some(from) = self.open(flags)? else {
            return Ok(None);
        };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = openat(self.to, self.name, flags, Mode::empty())?;
        Ok(Some((from, to)))
    }

    /// Opens the original, unless something is mounted there.
    fn open(self, flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        match beneath::open(self.from, self.name, flags | OFlags::NOFOLLOW, resolve) {
            Err(Errno::XDEV) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn copy_file(self) -> rustix::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = openat(self.to, self.name, flags, Mode::RUSR | Mode::WUSR)?;
        // Should it be a FIFO by now, nobody waits for it.
        let Some(from) = self.open(OFlags::RDONLY | OFlags::NONBLOCK)? else {
            return Ok(());
        };
        let (from, to) = (File::from(from), File::from(to));
        if !from.metadata().map_err(errno)?.is_file() {
            return Err(Errno::STALE);
        }
        match ioctl_ficlone(&to, &from) {
            Ok(()) => Ok(()),
            Err(_) => copy_content(&from, &to),
        }
    }

    /// Gives the copy what the original has beside its content.
    fn finish(self, status: &Stat) -> rustix::io::Result<()> {
        let (user, group) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
        chownat(self.to, self.name, Some(user), Some(group), NOFOLLOW)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
            // After the owner, whose change takes the set-user-ID bit away.
            let mode = Mode::from_raw_mode(status.st_mode);
            chmodat(self.to, self.name, mode, AtFlags::empty())?;
        }
        // After the owner, whose change takes capabilities away.
        self.copy_xattrs()?;
        let time = |seconds, nanoseconds: u64| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds as _,
        };
        let times = Timestamps {
            last_access: time(status.st_atime, status.st_atime_nsec),
            last_modification: time(status.st_mtime, status.st_mtime_nsec),
        };
        utimensat(self.to, self.name, &times, NOFOLLOW)
    }

    fn copy_xattrs(self) -> rustix::io::Result<()> {
        // There are no calls by directory and name before Linux 6.13.
        let [from, to] = [self.from, self.to].map(|dir| {
            let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            path.extend(self.name.to_bytes());
            path
        });
        let mut names = vec![0; MAX_XATTR];
        let length = match llistxattr(from.as_slice(), names.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => return Ok(()),
            other => other?,
        };
        let names = names.get(..length).unwrap_or_default();
        let mut value = Vec::new();
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            value.resize(MAX_XATTR, 0);
            let length = match lgetxattr(from.as_slice(), name, value.as_mut_slice()) {
                // The label of a security module is the host's affair.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
                other => other?,
            };
            let value = value.get(..length).unwrap_or_default();
            lsetxattr(to.as_slice(), name, value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// Copies what a file holds, without its holes, to an empty one.
fn copy_content(from: &File, to: &File) -> rustix::io::Result<()> {
    let size = from.metadata().map_err(errno)?.len();
    to.set_len(size).map_err(errno)?;
    let mut end = 0;
    while end < size {
        let start = match seek(from, SeekFrom::Data(end)) {
            // The rest is a hole.
            Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(Errno::INVAL) => end,
            other => other?,
        };
        end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        if end <= start {
            break;
        }
        copy_range(from, to, start, end)?;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, mut start: u64, end: u64) -> rustix::io::Result<()> {
    while start < end {
        let (mut off_in, mut off_out) = (start, start);
        let length = usize::try_from(end - start)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        let copied = copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), length);
        match copied {
            // It has become shorter.
            Ok(0) => return Ok(()),
            Ok(count) => start += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, start, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut start: u64, end: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    while start < end {
        let wanted = buffer
            .len()
            .min(usize::try_from(end - start).unwrap_or(PIECE));
        let count = match from.read_at(&mut buffer[..wanted], start) {
            Ok(0) => return Ok(()),
            other => other.map_err(errno)?,
        };
        to.write_all_at(&buffer[..count], start).map_err(errno)?;
        start += count as u64;
    }
    Ok(())
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    fn root() -> tempfile::TempDir {
        // A file system with attributes and holes, unlike some for temporary files.
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn a_copy_has_all_that_the_original_has() {
        let dir = root();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/file"), "text").unwrap();
        fs::hard_link(from.join("a/file"), from.join("a/b/second")).unwrap();
        symlink("/etc/nowhere", from.join("link")).unwrap();
        let big = File::create(from.join("sparse")).unwrap();
        big.write_all_at(b"end", 64 << 20).unwrap();
        mknodat(CWD, from.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let path = from.join("a/file");
        chownat(
            CWD,
            &path,
            Some(Uid::from_raw(7)),
            Some(Gid::from_raw(8)),
            NOFOLLOW,
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
        lsetxattr(&path, "trusted.test", b"value", XattrFlags::empty()).unwrap();
        let time = Timespec {
            tv_sec: 1_000_000,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, from.join("a"), &times, NOFOLLOW).unwrap();

        let to = dir.path().join("to");
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("a/b/second")).unwrap(), b"text");
        let status = fs::metadata(to.join("a/file")).unwrap();
        assert_eq!((status.uid(), status.gid(), status.nlink()), (7, 8, 2));
        assert_eq!(status.mode() & 0o7777, 0o4751);
        let mut value = [0; 16];
        let length = lgetxattr(to.join("a/file"), "trusted.test", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"value");
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/etc/nowhere")
        );
        let sparse = fs::metadata(to.join("sparse")).unwrap();
        assert_eq!(sparse.len(), (64 << 20) + 3);
        assert!(sparse.blocks() < 2048, "{} blocks", sparse.blocks());
        let fifo = fs::symlink_metadata(to.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo());
        let status = fs::metadata(to.join("a")).unwrap();
        assert_eq!((status.mtime(), status.mtime_nsec()), (1_000_000, 5));
    }

    #[test]
    fn content_is_copied_by_hand_where_the_kernel_cannot() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let text: Vec<u8> = (0..3 * PIECE + 5)
            .map(|index| (index % 251) as u8)
            .collect();
        from.write_all_at(&text, 0).unwrap();
        copy_by_hand(&from, &to, 0, text.len() as u64).unwrap();
        let mut copied = vec![0; text.len()];
        to.read_exact_at(&mut copied, 0).unwrap();
        assert!(copied == text);
    }

    #[test]
    fn a_tree_of_endless_depth_is_refused() {
        let dir = root();
        let from = dir.path().join("from");
        let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 2).collect();
        fs::create_dir_all(from.join(deep)).unwrap();
        let refused = copy(&from, &dir.path().join("to")).unwrap_err();
        assert!(refused.to_string().ends_with("/d/d/d"), "{refused}");
    }
}
