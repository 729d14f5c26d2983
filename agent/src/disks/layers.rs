//! Mounting one file system: of disks, or of directories of those before it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rvm_sys::beneath;

use super::device::Device;
use super::faults;
use super::request::{Directory, FileSystem, NewDirectory, Source};
use crate::init;
use crate::sys::{Doing as _, OsError};

/// Whoever made an image must not choose where its paths lead.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Makes a detached mount. The file systems before it are mounted by their numbers in `dir`.
pub(super) fn mount(
    file_system: &FileSystem,
    dir: &Path,
    devices: &[Device],
) -> Result<OwnedFd, OsError> {
    for new in &file_system.new_directories {
        make_directory(new, dir)?;
    }
    let FileSystem {
        kind, read_only, ..
    } = file_system;
    let mut options = file_system.options.clone();
    match &file_system.source {
        Source::Disks(indices) => {
            let used = || indices.iter().filter_map(|index| devices.get(*index));
            let mut nodes = used().map(Device::node);
            let first = nodes.next().unwrap_or_default().to_owned();
            options.splice(..0, faults::options(kind));
            // One device that is not mapped, among those of a file system, would be an error in
            // the kernel.
            if kind == "erofs" && used().all(Device::is_mapped) {
                options.insert(0, ("dax".to_owned(), Some("always".to_owned())));
            }
            options.extend(nodes.map(|node| ("device".to_owned(), Some(node.to_owned()))));
            let mount = init::filesystem(kind, &first, &options, *read_only)?;
            faults::limit_retries(kind, &first)?;
            Ok(mount)
        }
        Source::Bind(directory) => {
            let opened = open(directory, dir)?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            open_tree(&opened, "", flags).doing(|| format!("bind {}", path(directory, dir)))
        }
        Source::Overlay { lower, upper } => {
            for directory in lower {
                options.push(("lowerdir+".to_owned(), Some(checked(directory, dir)?)));
            }
            if let Some((upper, work)) = upper {
                for (name, directory) in [("upperdir", upper), ("workdir", work)] {
                    options.push((name.to_owned(), Some(checked(directory, dir)?)));
                }
            }
            init::filesystem(kind, kind, &options, *read_only)
        }
    }
}

fn path(directory: &Directory, dir: &Path) -> String {
    let root: PathBuf = dir.join(directory.file_system.to_string());
    match directory.path.as_os_str().is_empty() {
        true => root.display().to_string(),
        false => root.join(&directory.path).display().to_string(),
    }
}

/// The path of a directory in which there are no links. No container can change it before the
/// overlay is mounted: none has the file system.
fn checked(directory: &Directory, dir: &Path) -> Result<String, OsError> {
    open(directory, dir)?;
    Ok(path(directory, dir))
}

fn open(directory: &Directory, dir: &Path) -> Result<OwnedFd, OsError> {
    let root = open_root(directory, dir)?;
    if directory.path.as_os_str().is_empty() {
        return Ok(root);
    }
    open_below(&root, &directory.path).doing(|| format!("open {}", path(directory, dir)))
}

fn open_root(directory: &Directory, dir: &Path) -> Result<OwnedFd, OsError> {
    let root = dir.join(directory.file_system.to_string());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&root, flags, Mode::empty());
    opened.doing(|| format!("open {}", root.display()))
}

fn open_below(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    beneath::open(root, path, OFlags::PATH | OFlags::DIRECTORY, CONFINED)
}

/// Makes a directory, with its parents, unless it exists.
fn make_directory(new: &NewDirectory, dir: &Path) -> Result<(), OsError> {
    let path = &new.directory.path;
    let mut at = open_root(&new.directory, dir)?;
    for name in path {
        let made = match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => false,
            other => other
                .map(|()| true)
                .doing(|| format!("make directory {}", path.display()))?,
        };
        let below = open_below(&at, Path::new(name));
        at = below.doing(|| format!("open {}", path.display()))?;
        if made {
            set_owner(&at, new).doing(|| format!("set the owner of {}", path.display()))?;
        }
    }
    Ok(())
}

fn set_owner(directory: &OwnedFd, new: &NewDirectory) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
    // A descriptor that is for a path alone cannot be changed itself.
    let opened = rustix::fs::openat(
        directory,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::fs::fchown(&opened, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&opened, Mode::from_raw_mode(new.mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn directory(path: &str) -> Directory {
        Directory {
            file_system: 0,
            path: path.into(),
        }
    }

    fn new(path: &str) -> NewDirectory {
        NewDirectory {
            directory: directory(path),
            mode: 0o750,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        }
    }

    #[test]
    fn a_directory_is_made_once_and_has_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("0")).unwrap();
        make_directory(&new("fs/upper"), dir.path()).unwrap();
        make_directory(&new("fs/upper"), dir.path()).unwrap();
        let made = dir.path().join("0/fs/upper");
        assert_eq!(
            made.metadata().unwrap().permissions().mode() & 0o7777,
            0o750
        );
        let found = checked(&directory("fs/upper"), dir.path()).unwrap();
        assert_eq!(Path::new(&found), made);
    }

    #[test]
    fn a_link_of_the_image_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("0")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("0/upper")).unwrap();
        assert!(checked(&directory("upper"), dir.path()).is_err());
        assert!(make_directory(&new("upper/work"), dir.path()).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
