//! The mounts of the host, from /proc/self/mountinfo; see proc_pid_mountinfo(5).

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    id: u64,
    /// The part of the file system that is mounted.
    pub(crate) root: PathBuf,
    /// The mount point.
    pub(crate) point: PathBuf,
    /// Options of the mount, such as `ro` and `nosuid`.
    options: String,
    is_unbindable: bool,
    /// The type of the file system.
    pub(crate) kind: String,
    /// Options of the file system.
    pub(crate) data: String,
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' '), after.split(' '));
        Some(Self {
            id: before.next()?.parse().ok()?,
            root: unescape(before.nth(2)?).into(),
            point: unescape(before.next()?).into(),
            options: before.next()?.to_owned(),
            is_unbindable: before.any(|tag| tag == "unbindable"),
            kind: after.next()?.to_owned(),
            data: after.nth(1)?.to_owned(),
        })
    }

    /// A file system that is read-only is so through all its mounts.
    fn options(&self) -> Vec<String> {
        let is_read_only = self.data.split(',').any(|option| option == "ro");
        let own = self.options.split(',').map(|option| match option {
            "rw" if is_read_only => "ro".to_owned(),
            option => option.to_owned(),
        });
        own.collect()
    }
}

/// Replaces the kernel's octal escapes for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Parses the table's text.
pub(crate) fn parse(text: &str) -> impl Iterator<Item = Entry> {
    text.lines().filter_map(Entry::parse)
}

/// The text of the calling thread's table. Names that are no UTF-8 are changed, so that no file is
/// found by them.
pub(crate) fn read() -> io::Result<String> {
    let bytes = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A mount that a bind mount of a directory shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundMount {
    /// Its mount point in the directory; empty for the mount that holds the directory itself.
    pub(crate) below: PathBuf,
    /// Its options by their names in mount(8).
    pub(crate) options: Vec<String>,
}

impl BoundMount {
    /// Whether it holds the directory itself.
    pub(crate) fn is_top(&self) -> bool {
        self.below.as_os_str().is_empty()
    }
}

/// The mount that holds `path`, which has no symbolic links, and then the mounts below it that are
/// not hidden by others, each after the one that it is in.
pub(crate) fn bound_mounts(table: &[Entry], path: &Path) -> Vec<BoundMount> {
    let bound = |entry: &Entry, below: &Path| BoundMount {
        below: below.to_owned(),
        options: entry.options(),
    };
    let holder = mount_id(path).and_then(|id| table.iter().find(|entry| entry.id == id));
    let below = table.iter().filter_map(|entry| {
        let below = entry.point.strip_prefix(path).ok()?;
        let is_below = !below.as_os_str().is_empty() && !entry.is_unbindable;
        (is_below && is_visible(entry)).then(|| bound(entry, below))
    });
    let mut mounts: Vec<BoundMount> = below.collect();
    mounts.sort_by(|one, other| one.below.cmp(&other.below));
    mounts.splice(0..0, holder.map(|entry| bound(entry, Path::new(""))));
    mounts
}

/// Whether the mount's point leads to it, and not to a mount over it.
fn is_visible(entry: &Entry) -> bool {
    mount_id(&entry.point) == Some(entry.id)
}

/// The number of the mount that a path is on, which Linux tells from 5.8 on. It asks no server and
/// triggers no automount.
fn mount_id(path: &Path) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::MNT_ID).ok()?;
    let is_told = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    is_told.then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
    use std::fs;

    #[test]
    fn a_line_has_options_of_the_mount_and_of_its_file_system() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 unbindable - ext3 /dev/x ro,a";
        let entry = Entry::parse(line).unwrap();
        assert_eq!((entry.id, &*entry.kind, &*entry.data), (36, "ext3", "ro,a"));
        assert_eq!(
            (&*entry.root, &*entry.point),
            (Path::new("/mnt1"), Path::new("/mnt 2"))
        );
        assert!(entry.is_unbindable);
        assert_eq!(entry.options(), ["ro", "noatime"]);
        assert_eq!(Entry::parse("36 35 98:0 /"), None);
    }

    #[test]
    fn mounts_below_a_directory_are_found_unless_they_are_hidden() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let tmpfs = |point: &Path, flags| {
            fs::create_dir_all(point).unwrap();
            mount("rvm-test", point, "tmpfs", flags, None).unwrap();
        };
        tmpfs(&path.join("a"), MountFlags::empty());
        tmpfs(&path.join("a/hidden"), MountFlags::empty());
        tmpfs(&path.join("a"), MountFlags::NOSUID);
        tmpfs(&path.join("a/b c"), MountFlags::RDONLY);
        let noexec = MountFlags::BIND | MountFlags::NOEXEC | MountFlags::RDONLY;
        mount_remount(path.join("a/b c"), noexec, "").unwrap();
        let table: Vec<_> = parse(&read().unwrap()).collect();
        let found = bound_mounts(&table, &path);
        let below: Vec<_> = found.iter().map(|mount| mount.below.as_path()).collect();
        assert_eq!(below, ["", "a", "a/b c"].map(Path::new));
        assert_eq!(found[1].options, ["rw", "nosuid", "relatime"]);
        assert_eq!(found[2].options, ["ro", "noexec", "relatime"]);
        assert_eq!(
            bound_mounts(&table, &path.join("a/b c")),
            [BoundMount {
                below: PathBuf::new(),
                options: found[2].options.clone(),
            }]
        );
        for name in ["a/b c", "a", "a/hidden", "a"] {
            unmount(path.join(name), UnmountFlags::DETACH).unwrap();
        }
    }
}
