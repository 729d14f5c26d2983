//! `linux.maskedPaths` and `linux.readonlyPaths`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, major, minor};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{attach, filesystem};
use super::rootfs::Rootfs;
use super::targets;
use crate::sys::{Doing as _, OsError};
use rvm_sys::mount::{AttrChange, change_attributes};

/// Makes paths read-only. Skips those that do not exist.
pub fn make_read_only(root: &Rootfs, paths: &[String]) -> Result<(), OsError> {
    for path in paths {
        let Some(found) = find(root, path)? else {
            continue;
        };
        let doing = || format!("make {path} read-only");
        let copy = copy_mount(&found, true).doing(doing)?;
        change_attributes(copy.as_fd(), AttrChange::READ_ONLY, true).doing(doing)?;
        attach(&copy, &found)?;
    }
    Ok(())
}

/// Overmounts files with /dev/null and directories with an empty one. Skips paths that do not
/// exist.
pub fn hide(root: &Rootfs, paths: &[String]) -> Result<(), OsError> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(found) = find(root, path)? else {
            continue;
        };
        let doing = || format!("hide {path}");
        if !targets::is_directory(&found).doing(doing)? {
            attach(copy_mount(&null(root)?, false).doing(doing)?, &found)?;
            continue;
        }
        // One empty file system serves all; only an attached one can be copied.
        match &empty {
            Some(empty) => attach(copy_mount(empty, false).doing(doing)?, &found)?,
            None => {
                let new = empty_directory()?;
                attach(&new, &found)?;
                empty = Some(new);
            }
        }
    }
    Ok(())
}

fn find(root: &Rootfs, path: &str) -> Result<Option<OwnedFd>, OsError> {
    match targets::open(root.as_fd(), path) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).doing(|| format!("open {path}")),
    }
}

fn copy_mount(of: &OwnedFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, "", flags)
}

fn empty_directory() -> Result<OwnedFd, OsError> {
    let empty = filesystem("tmpfs", "tmpfs", &[], false)?;
    change_attributes(empty.as_fd(), AttrChange::READ_ONLY, false)
        .doing(|| "make a tmpfs read-only")?;
    Ok(empty)
}

/// Opens the container's /dev/null and checks that it is the null device: an image could otherwise
/// have another file mounted over the masked paths (CVE-2025-31133).
fn null(root: &Rootfs) -> Result<OwnedFd, OsError> {
    let null = targets::open(root.as_fd(), "/dev/null").doing(|| "open /dev/null")?;
    let status = rustix::fs::fstat(&null).doing(|| "look at /dev/null")?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice;
    if !is_device || (major(status.st_rdev), minor(status.st_rdev)) != (1, 3) {
        return Err(Errno::NODEV).doing(|| "use /dev/null, which is not the null device");
    }
    Ok(null)
}
