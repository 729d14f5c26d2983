//! Disks of containers: block devices and image files of the host with file systems, which the
//! guest's kernel mounts and stacks, and block devices that the container uses itself. The host's
//! kernel never parses them.

mod open;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use rvm_protocol::DISKS_DIR;
use rvm_protocol::agent::FileSystem;

pub use open::{Opened, lock, open};

/// The file systems of disks that the guest's kernel has.
pub const FILE_SYSTEMS: [&str; 8] = [
    "erofs", "ext2", "ext3", "ext4", "iso9660", "squashfs", "vfat", "xfs",
];

/// Those of them that cannot be written.
const READ_ONLY: [&str; 3] = ["erofs", "iso9660", "squashfs"];

/// The magic numbers by which a root's file system is recognized, and their offsets.
const MAGIC: [(&str, u64, &[u8]); 4] = [
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("ext4", 1080, &[0x53, 0xef]),
    ("squashfs", 0, b"hsqs"),
    ("xfs", 0, b"XFSB"),
];

/// Whether a mount of this type is one of a disk.
pub fn is_disk_file_system(kind: &str) -> bool {
    FILE_SYSTEMS.contains(&kind)
}

/// Major and minor number of a device.
pub type DeviceNumber = (u32, u32);

/// A block device or an image file of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where it is.
    pub place: Place,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

/// Where the host has a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A block device or an image file with a file system.
    Path(PathBuf),
    /// A block device that `linux.devices` gives to the container.
    Device {
        /// Its number on the host.
        number: DeviceNumber,
        /// Its path in the container.
        inside: PathBuf,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Device { number, inside } => {
                let (major, minor) = number;
                write!(f, "{} of linux.devices ({major}:{minor})", inside.display())
            }
        }
    }
}

impl Disk {
    /// A disk with a file system of this type.
    pub fn new(path: PathBuf, kind: &str, read_only: bool) -> Self {
        Self {
            place: Place::Path(path),
            read_only: read_only || READ_ONLY.contains(&kind),
        }
    }
}

/// The disks of a container, and the file systems on them in the order in which the guest mounts
/// them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stack {
    disks: Vec<Disk>,
    file_systems: Vec<FileSystem>,
}

impl Stack {
    /// A root of one file system, in this block device or image file. The type is recognized by
    /// its first bytes.
    pub fn of_root(path: &Path) -> io::Result<Self> {
        let kind = match is_disk(path)? {
            true => recognize(&File::open(path)?)?,
            false => return Err(no_root()),
        };
        let mut stack = Self::default();
        stack.mount(Disk::new(path.to_owned(), kind, false), kind, Vec::new());
        Ok(stack)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Whether a disk has nothing but a file system whose files the guest can use where they are,
    /// without a page cache of its own (DAX): erofs, on this disk alone.
    pub fn is_layer(&self, disk: usize) -> bool {
        let mut users = self.file_systems.iter().filter(|it| {
            let mut disks = [it.disk].into_iter().chain(it.more_disks.iter().copied());
            is_disk_file_system(&it.kind) && disks.any(|index| index as usize == disk)
        });
        let is_own = |it: &FileSystem| it.kind == "erofs" && it.more_disks.is_empty();
        users.next().is_some_and(is_own) && users.next().is_none()
    }

    /// The file systems.
    pub fn file_systems(&self) -> &[FileSystem] {
        &self.file_systems
    }

    /// The file system that is mounted last.
    pub fn top(&self) -> Option<u32> {
        let last = self.file_systems.len().checked_sub(1)?;
        u32::try_from(last).ok()
    }

    /// Adds a disk without a file system of its own. Returns its index.
    pub fn add_disk(&mut self, disk: Disk) -> u32 {
        let index = self.disks.len();
        self.disks.push(disk);
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Adds a file system whose disks and directories are there. Returns its index.
    pub fn add(&mut self, file_system: FileSystem) -> u32 {
        let index = self.file_systems.len();
        self.file_systems.push(file_system);
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// Adds a disk and the file system on it. Returns the file system's index.
    pub fn mount(&mut self, disk: Disk, kind: &str, options: Vec<String>) -> u32 {
        let read_only = disk.read_only;
        let disk = self.add_disk(disk);
        self.add(FileSystem {
            kind: kind.to_owned(),
            disk,
            options,
            read_only,
            ..Default::default()
        })
    }
}

/// The path in the guest of a container's file system.
pub fn place(id: &str, file_system: u32) -> PathBuf {
    Path::new(DISKS_DIR).join(id).join(file_system.to_string())
}

/// Whether a path is one of a block device or a regular file.
pub fn is_disk(path: &Path) -> io::Result<bool> {
    let kind = path.metadata()?.file_type();
    Ok(kind.is_block_device() || kind.is_file())
}

fn recognize(file: &File) -> io::Result<&'static str> {
    let is_there = |(_, offset, magic): &&(&str, u64, &[u8])| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, *offset).is_ok() && found == *magic
    };
    let found = MAGIC.iter().find(is_there);
    found.map(|(kind, ..)| *kind).ok_or_else(no_root)
}

fn no_root() -> io::Error {
    let reason = "not a directory, and no disk with ext4, xfs, erofs or squashfs";
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_an_erofs_on_a_disk_of_its_own() {
        let disk = |kind: &str| Disk::new("/image".into(), kind, true);
        let mut stack = Stack::default();
        stack.mount(disk("erofs"), "erofs", Vec::new());
        stack.mount(disk("ext4"), "ext4", Vec::new());
        stack.add_disk(disk("erofs"));
        stack.add(FileSystem {
            kind: "overlay".to_owned(),
            ..Default::default()
        });
        let layers = |stack: &Stack| [0, 1, 2, 3].map(|disk| stack.is_layer(disk));
        assert_eq!(layers(&stack), [true, false, false, false]);
        let on_two = FileSystem {
            kind: "erofs".to_owned(),
            disk: 2,
            more_disks: vec![0],
            ..Default::default()
        };
        stack.add(on_two);
        assert_eq!(layers(&stack), [false; 4]);
    }

    #[test]
    fn a_roots_file_system_is_recognized() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, offset, magic) in MAGIC {
            let path = dir.path().join(kind);
            let file = File::create(&path).unwrap();
            file.set_len(4096).unwrap();
            file.write_all_at(magic, offset).unwrap();
            let stack = Stack::of_root(&path).unwrap();
            assert_eq!(stack.file_systems()[0].kind, kind);
            let cannot_be_written = ["erofs", "squashfs"].contains(&kind);
            assert_eq!(stack.disks()[0].read_only, cannot_be_written, "{kind}");
        }
        for other in [&b""[..], b"no file system"] {
            let path = dir.path().join("other");
            std::fs::write(&path, other).unwrap();
            let error = Stack::of_root(&path).unwrap_err();
            assert!(error.to_string().contains("ext4"), "{error}");
        }
    }
}
