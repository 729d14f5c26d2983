//! Opening a disk for a process that a guest may take over.
//!
//! A descriptor can be opened again by way of `/proc/self/fd` with more rights than it has, if the
//! file's owner and mode allow it. One from here cannot: a disk that may only be read is opened on
//! a mount of its own, which is read-only for files and without devices for devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rvm_sys::mount::{AttrChange, change_attributes};

use super::Disk;

/// Opens a block device or image file with the rights that the guest is to have, and locks it as
/// [`lock`] does.
pub fn open(disk: &Disk) -> io::Result<File> {
    let file = match disk.read_only {
        true => open_to_read(&disk.path)?,
        false => open_to_write(&disk.path)?,
    };
    lock(&file, disk.read_only)?;
    Ok(file)
}

/// Keeps the disks of two machines apart as long as the file is open: many may read one, or one
/// may write to it.
pub fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let operation = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is in use by another container, and one of the two writes to it",
        ),
        other => other.into(),
    })
}

/// A device that the host has mounted, or uses otherwise, is refused: EBUSY.
fn open_to_write(path: &Path) -> io::Result<File> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::EXCL, path.metadata()?.file_type().is_block_device());
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let path = path.canonicalize()?;
    let mount = open_tree(CWD, &path, flags)?;
    change_attributes(mount.as_fd(), AttrChange::READ_ONLY, false)?;
    let same = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let file = rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    change_attributes(mount.as_fd(), AttrChange::NO_DEVICES, false)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path, read_only: bool) -> Disk {
        Disk {
            path: path.to_owned(),
            read_only,
        }
    }

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn a_disk_to_read_cannot_be_opened_again_to_write() {
        let image = image();
        let file = open(&disk(image.path(), true)).unwrap();
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = File::options().write(true).open(again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    /// /dev/null stands for a device: what forbids a device forbids every kind.
    #[test]
    fn a_device_to_read_cannot_be_opened_again_at_all() {
        let file = open_to_read(Path::new("/dev/null")).unwrap();
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        for write in [false, true] {
            let mut options = File::options();
            let error = options.read(true).write(write).open(&again).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn many_read_a_disk_or_one_writes_to_it() {
        let image = image();
        let reader = open(&disk(image.path(), true)).unwrap();
        let other = open(&disk(image.path(), true)).unwrap();
        let error = open(&disk(image.path(), false)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        drop((reader, other));
        let _writer = open(&disk(image.path(), false)).unwrap();
        for read_only in [true, false] {
            assert!(open(&disk(image.path(), read_only)).is_err());
        }
    }
}
