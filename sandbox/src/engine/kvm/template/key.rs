//! What kind of machine a template is of.
//!
//! A machine is restored from a template of its own kind alone: one that booted from the same files
//! with the same parameters, and is as large. The files are compared by their identity and not by
//! their content, so that a start costs no reading of them. What the host's CPU and KVM are,
//! rvm-vmm compares itself.

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::sizing::Size;

/// The version of what a template's directory holds. A change that an older rvm would misread
/// increments it.
const FORMAT: u32 = 1;

/// The id of the host's boot: what a template says of the host's clocks and KVM ends with it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    format: u32,
    boot: String,
    kernel: FileIdentity,
    initramfs: FileIdentity,
    vmm: FileIdentity,
    cmdline: String,
    pub(super) shape: Shape,
}

/// What a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    pub(crate) vcpus: u8,
    pub(crate) max_vcpus: u8,
    pub(crate) memory_mib: u64,
    pub(crate) max_memory_mib: u64,
    /// Slots for network cards, those with a card included.
    pub(crate) net_slots: usize,
    pub(crate) disk_slots: usize,
}

impl Shape {
    pub(crate) fn new(size: Size, max: Size, net_slots: usize, disk_slots: usize) -> Self {
        Self {
            vcpus: size.vcpus,
            max_vcpus: max.vcpus,
            memory_mib: size.memory_mib,
            max_memory_mib: max.memory_mib,
            net_slots,
            disk_slots,
        }
    }

    pub(super) fn size(&self) -> Size {
        Size {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
        }
    }
}

/// A file, and what changes when it is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIdentity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileIdentity {
    fn of(path: &Path) -> io::Result<Self> {
        let status = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: status.dev(),
            inode: status.ino(),
            size: status.len(),
            modified: (status.mtime(), status.mtime_nsec()),
        })
    }

    fn is_unchanged(&self) -> bool {
        Self::of(&self.path).is_ok_and(|now| now == *self)
    }
}

impl Key {
    /// The kind of a machine with this kernel command line. Fails if one of the files is missing.
    pub(super) fn of(config: &Config, cmdline: String, shape: Shape) -> io::Result<Self> {
        Ok(Self {
            format: FORMAT,
            boot: boot_id()?,
            kernel: FileIdentity::of(&config.kernel)?,
            initramfs: FileIdentity::of(&config.initramfs)?,
            vmm: FileIdentity::of(&config.vmm)?,
            cmdline,
            shape,
        })
    }

    /// Whether a machine can still be of this kind: the host has not booted since, and the files
    /// are as they were.
    pub(super) fn is_current(&self) -> bool {
        let files = [&self.kernel, &self.initramfs, &self.vmm];
        self.format == FORMAT
            && boot_id().is_ok_and(|boot| boot == self.boot)
            && files.into_iter().all(FileIdentity::is_unchanged)
    }
}

/// A key in the forms that the store works with.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) key: Key,
    /// What the template's directory holds, byte for byte.
    pub(super) text: Vec<u8>,
    /// The name of that directory. Two kinds may share one: the text decides.
    pub(super) id: String,
}

impl Kind {
    pub(super) fn new(key: Key) -> io::Result<Self> {
        let text = serde_json::to_vec(&key)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&text);
        let id = format!("{:016x}", hasher.finish());
        Ok(Self { key, text, id })
    }
}

/// Whether a name can be a [`Kind::id`].
pub(super) fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim_end().to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        vcpus: 1,
        max_vcpus: 4,
        memory_mib: 584,
        max_memory_mib: 4096,
        net_slots: 5,
        disk_slots: 0,
    };

    /// A configuration whose files are in `dir`.
    pub(crate) fn config(dir: &Path) -> Config {
        let mut config = Config::load(None).unwrap();
        config.template_dir = dir.join("templates");
        for (path, name) in [
            (&mut config.kernel, "vmlinux"),
            (&mut config.initramfs, "initramfs"),
            (&mut config.vmm, "rvm-vmm"),
        ] {
            *path = dir.join(name);
            fs::write(path, format!("\x7fELF {name}")).unwrap();
        }
        config
    }

    /// The kind of a machine with so much memory.
    pub(crate) fn kind(config: &Config, memory_mib: u64) -> Kind {
        let shape = Shape {
            memory_mib,
            ..SHAPE
        };
        Kind::new(Key::of(config, "quiet".to_owned(), shape).unwrap()).unwrap()
    }

    #[test]
    fn the_same_machine_is_of_the_same_kind_and_a_text_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (one, other) = (kind(&config, 584), kind(&config, 584));
        assert_eq!((&one.text, &one.id), (&other.text, &other.id));
        assert!(is_id(&one.id), "{}", one.id);
        let read: Key = serde_json::from_slice(&one.text).unwrap();
        assert_eq!(read, one.key);
        assert!(read.is_current());
    }

    #[test]
    fn whatever_differs_makes_another_kind() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let base = kind(&config, 584);
        let differing: [fn(&mut Key); 15] = [
            |key| key.format += 1,
            |key| key.boot.push('0'),
            |key| key.kernel.path.push("x"),
            |key| key.kernel.device += 1,
            |key| key.kernel.inode += 1,
            |key| key.kernel.size += 1,
            |key| key.initramfs.modified.1 += 1,
            |key| key.vmm.modified.0 += 1,
            |key| key.cmdline.push_str(" psi=1"),
            |key| key.shape.vcpus += 1,
            |key| key.shape.max_vcpus += 1,
            |key| key.shape.memory_mib += 1,
            |key| key.shape.max_memory_mib += 1,
            |key| key.shape.net_slots += 1,
            |key| key.shape.disk_slots += 1,
        ];
        for differ in differing {
            let mut key = base.key.clone();
            differ(&mut key);
            let other = Kind::new(key).unwrap();
            assert_ne!(other.text, base.text);
            assert_ne!(other.id, base.id);
        }
    }

    #[test]
    fn a_file_that_is_written_replaced_or_gone_makes_a_kind_stale() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let old = kind(&config, 584);
        fs::write(&config.kernel, "longer than before").unwrap();
        assert!(!old.key.is_current());
        let written = kind(&config, 584);
        assert_ne!(old.text, written.text);
        // As an upgrade does.
        let new = dir.path().join("new");
        fs::write(&new, "longer than before").unwrap();
        fs::rename(&new, &config.kernel).unwrap();
        assert!(!written.key.is_current());
        let replaced = kind(&config, 584);
        assert!(replaced.key.is_current());
        fs::remove_file(&config.vmm).unwrap();
        assert!(!replaced.key.is_current());
        config.vmm = dir.path().join("none");
        let missing = Key::of(&config, String::new(), SHAPE).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_kind_of_an_earlier_boot_or_of_another_format_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mut earlier = kind(&config, 584).key;
        earlier.boot = "0".to_owned();
        assert!(!earlier.is_current());
        let mut later = kind(&config, 584).key;
        later.format += 1;
        assert!(!later.is_current());
    }
}
