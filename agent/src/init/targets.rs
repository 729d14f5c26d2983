//! Paths below a container's root, which an image may have filled with hostile links.
//!
//! The kernel resolves every path with RESOLVE_IN_ROOT, so that neither `..` nor a link leads out.
//! From then on a descriptor stands for the path: no later change in the root can make it mean
//! another file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rvm_sys::beneath;

use crate::sys::{Doing as _, OsError};

/// The number of links that the kernel follows.
const MAX_LINKS: usize = 40;

const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What to make at a path that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// Opens a path with O_PATH; links are followed within the root.
pub fn open(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    beneath::open(root, relative(path), PATH_ONLY, ResolveFlags::IN_ROOT)
}

/// Opens a path in which there must be no link at all.
pub fn open_without_links(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    beneath::open(root, relative(path), flags, how)
}

/// Opens a path, and makes what is missing of it. A dangling link is followed within the root, and
/// its target is made.
pub fn open_or_make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, OsError> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        result => return result.doing(|| format!("open {path}")),
    }
    make(root, path, kind).doing(|| format!("make {path}"))
}

/// Opens the directory of a path, makes what is missing of it, and returns it with the last name.
pub fn open_parent(root: BorrowedFd<'_>, path: &str) -> Result<(OwnedFd, String), OsError> {
    let path = Path::new(relative(path));
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name
        .ok_or(Errno::INVAL)
        .doing(|| format!("find the name of {}", path.display()))?;
    let parent = path.parent().map(Path::to_string_lossy).unwrap_or_default();
    Ok((open_or_make(root, &parent, Kind::Directory)?, name))
}

fn make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> rustix::io::Result<OwnedFd> {
    let mut rest = components(Path::new(path));
    rest.reverse();
    let mut resolved = PathBuf::new();
    let mut parent = root.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let next = resolved.join(&name);
        let is_last = rest.is_empty();
        match beneath::open(root, &next, PATH_ONLY, ResolveFlags::IN_ROOT) {
            Ok(opened) => {
                parent = opened;
                resolved = next;
                continue;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        match make_one(parent.as_fd(), &name, is_last, kind) {
            Ok(()) => {
                // Opened without following links, in the directory that it was made in: another
                // container of the root could put a link there in between.
                let flags = PATH_ONLY | OFlags::NOFOLLOW;
                parent = rustix::fs::openat(&parent, &name, flags, Mode::empty())?;
                resolved = next;
            }
            // A dangling link.
            Err(Errno::EXIST) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = match rustix::fs::readlinkat(&parent, &name, Vec::new()) {
                    Err(Errno::INVAL) => {
                        // No link: another container has made it in between.
                        rest.push(name);
                        continue;
                    }
                    result => result?,
                };
                let target =
                    Path::new(std::str::from_utf8(target.as_bytes()).map_err(|_| Errno::ILSEQ)?);
                if target.is_absolute() {
                    resolved = PathBuf::new();
                    parent = root.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
                }
                rest.extend(components(target).into_iter().rev());
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(parent)
}

fn make_one(
    parent: BorrowedFd<'_>,
    name: &str,
    is_last: bool,
    kind: Kind,
) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(0o755);
    if is_last && kind == Kind::File {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        return rustix::fs::openat(parent, name, flags, mode).map(drop);
    }
    rustix::fs::mkdirat(parent, name, mode)
}

/// The names in a path, with `..`, which the kernel resolves.
fn components(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            Component::ParentDir => Some("..".to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// The path without leading slashes; never empty.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

pub fn is_directory(fd: impl AsFd) -> rustix::io::Result<bool> {
    let status = rustix::fs::fstat(fd)?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        let root = directory.path().join("root");
        let fd = rustix::fs::open(&root, PATH_ONLY, Mode::empty()).unwrap();
        (directory, fd)
    }

    #[test]
    fn missing_directories_and_the_file_are_made() {
        let (directory, root) = root();
        open_or_make(root.as_fd(), "/a/b/file", Kind::File).unwrap();
        assert!(directory.path().join("root/a/b/file").is_file());
    }

    #[test]
    fn what_others_make_at_the_same_time_is_taken() {
        let (_directory, root) = root();
        for round in 0..50 {
            let path = format!("/{round}/a/b/c");
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| open_or_make(root.as_fd(), &path, Kind::Directory).unwrap());
                }
            });
        }
    }

    #[test]
    fn a_link_out_of_the_root_stays_inside() {
        let (directory, root) = root();
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, directory.path().join("root/link")).unwrap();
        symlink("../../outside", directory.path().join("root/up")).unwrap();
        open_or_make(root.as_fd(), "/link/file", Kind::File).unwrap();
        open_or_make(root.as_fd(), "/up/file", Kind::File).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert!(directory.path().join("root/outside/file").is_file());
    }

    #[test]
    fn a_dangling_link_is_made_to_lead_somewhere() {
        let (directory, root) = root();
        symlink("/etc/real.conf", directory.path().join("root/conf")).unwrap();
        open_or_make(root.as_fd(), "/conf", Kind::File).unwrap();
        assert!(directory.path().join("root/etc/real.conf").is_file());
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let (directory, root) = root();
        symlink("b", directory.path().join("root/a")).unwrap();
        symlink("a", directory.path().join("root/b")).unwrap();
        assert_eq!(
            open_or_make(root.as_fd(), "/a", Kind::File)
                .unwrap_err()
                .errno,
            Errno::LOOP
        );
    }

    #[test]
    fn no_link_is_followed_where_none_may_be() {
        let (directory, root) = root();
        std::fs::create_dir(directory.path().join("root/real")).unwrap();
        symlink("real", directory.path().join("root/proc")).unwrap();
        let error = open_without_links(root.as_fd(), "/proc", OFlags::PATH).unwrap_err();
        assert_eq!(error, Errno::LOOP);
    }
}
