//! Opening a disk for a process that a guest may take over.
//!
//! A descriptor can be opened again by way of `/proc/self/fd` with more rights than it has, if the
//! file's owner and mode allow it. One from here cannot: a disk that may only be read is opened on
//! a mount of its own, which is read-only for files and without devices for devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, flock, ioctl_blksszget, makedev, mknodat, openat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    open_tree,
};
use rvm_protocol::vmm::MAX_BLOCK_SIZE;
use rvm_sys::mount::{AttrChange, change_attributes};

use super::{DeviceNumber, Disk, Place};

/// The sectors of an image file.
const SECTOR: u32 = 512;

/// An opened disk.
#[derive(Debug)]
pub struct Opened {
    /// With the rights that the guest is to have.
    pub file: File,
    /// The number of a block device; none if it is an image file.
    pub number: Option<DeviceNumber>,
    /// The size of its logical blocks in bytes, at most [`MAX_BLOCK_SIZE`].
    pub block_size: u32,
}

/// Opens a block device or image file with the rights that the guest is to have. One that has a
/// file system is locked as [`lock`] does; how containers share another is theirs to agree on.
pub fn open(disk: &Disk) -> io::Result<Opened> {
    let file = match &disk.place {
        Place::Device { number, .. } => open_device(*number, disk.read_only)?,
        Place::Path(path) => {
            let file = match disk.read_only {
                true => open_to_read(path)?,
                false => open_to_write(path)?,
            };
            lock(&file, disk.read_only)?;
            file
        }
    };
    let status = file.metadata()?;
    if !status.file_type().is_block_device() {
        return Ok(Opened {
            file,
            number: None,
            block_size: SECTOR,
        });
    }
    let block_size = ioctl_blksszget(&file)?;
    if block_size > MAX_BLOCK_SIZE {
        let reason = format!(
            "its blocks have {block_size} bytes, and a guest takes at most {MAX_BLOCK_SIZE}"
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    let number = status.rdev();
    Ok(Opened {
        file,
        number: Some((rustix::fs::major(number), rustix::fs::minor(number))),
        block_size,
    })
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

/// Opens a block device by its number alone, on a node of its own: nobody could have put anything
/// else in its place. To be written, the host must not use it.
fn open_device((major, minor): DeviceNumber, read_only: bool) -> io::Result<File> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&tmpfs)?;
    let mount = fsmount(
        &tmpfs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(
        &mount,
        NODE,
        FileType::BlockDevice,
        mode,
        makedev(major, minor),
    )?;
    let open = |flags| openat(&mount, NODE, flags | OFlags::CLOEXEC, Mode::empty());
    let file = match read_only {
        true => open(OFlags::RDONLY)?,
        false => {
            // The claim ends at once: containers may share the device.
            open(OFlags::RDWR | OFlags::EXCL).map_err(in_use)?;
            open(OFlags::RDWR)?
        }
    };
    change_attributes(mount.as_fd(), AttrChange::NO_DEVICES, false)?;
    Ok(file.into())
}

/// The name of the node.
const NODE: &str = "disk";

fn in_use(errno: Errno) -> io::Error {
    match errno {
        Errno::BUSY => io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the host has it mounted or uses it otherwise, so it can only be read",
        ),
        other => other.into(),
    }
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
            place: Place::Path(path.to_owned()),
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
        let opened = open(&disk(image.path(), true)).unwrap();
        assert_eq!((opened.number, opened.block_size), (None, 512));
        let again = format!("/proc/self/fd/{}", opened.file.as_raw_fd());
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
    fn a_device_that_is_opened_by_its_number_cannot_be_opened_again_at_all() {
        let devices = std::fs::read_dir("/sys/dev/block").unwrap();
        let opened = devices.flatten().find_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let (major, minor) = name.split_once(':').unwrap();
            let number = (major.parse().unwrap(), minor.parse().unwrap());
            let place = Place::Device {
                number,
                inside: "/dev/xvda".into(),
            };
            let read_only = true;
            let opened = open(&Disk { place, read_only }).ok()?;
            assert_eq!(opened.number, Some(number));
            assert!(opened.block_size >= SECTOR);
            Some(opened.file)
        });
        let Some(file) = opened else {
            println!("skipped: this host has no block device");
            return;
        };
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = File::open(&again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
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
