//! Files for processes that a guest may take over.
//!
//! A descriptor that is open for reading can be opened again for writing by way of
//! `/proc/self/fd`, if the file's owner and mode allow it. One from here cannot: the file is opened
//! on a read-only mount that no other process can reach or remount.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rvm_sys::mount::{AttrChange, change_attributes};

/// Opens a regular file for reading, and for nothing else by whatever way.
///
/// Before Linux 5.12, which cannot change a detached mount, the result is a sealed copy in memory.
pub fn open(path: &Path) -> io::Result<File> {
    match on_read_only_mount(path) {
        Err(Errno::NOSYS) => sealed_copy(&File::open(path)?),
        file => Ok(file?.into()),
    }
}

/// Opens these regular files of a directory in the same way, and follows no symbolic link. Fails
/// before Linux 5.12: a copy could be as large as a machine's memory.
pub(crate) fn open_all<const N: usize>(
    dir: BorrowedFd<'_>,
    names: [&str; N],
) -> io::Result<[File; N]> {
    let mount = read_only_mount(dir, Path::new(""), OpenTreeFlags::AT_EMPTY_PATH)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut files = Vec::with_capacity(N);
    for name in names {
        let file = File::from(openat(&mount, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{name} is no regular file")));
        }
        files.push(file);
    }
    files
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn read_only_mount(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OpenTreeFlags,
) -> Result<OwnedFd, Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(dir, path, clone | flags)?;
    change_attributes(mount.as_fd(), AttrChange::READ_ONLY, false)?;
    Ok(mount)
}

fn on_read_only_mount(path: &Path) -> Result<OwnedFd, Errno> {
    let mount = read_only_mount(CWD, path, OpenTreeFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let same = format!("/proc/self/fd/{}", mount.as_raw_fd());
    rustix::fs::open(same, flags, Mode::empty())
}

fn sealed_copy(mut file: &File) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(memfd_create("rvm", flags)?);
    io::copy(&mut file, &mut copy)?;
    copy.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};

    fn read(mut file: File) -> String {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn reopened(file: &File) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::options().write(true).open(path)
    }

    #[test]
    fn a_file_cannot_be_opened_again_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, "kernel").unwrap();
        assert!(reopened(&File::open(&path).unwrap()).is_ok(), "the attack");
        let file = open(&path).unwrap();
        let error = reopened(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(read(file), "kernel");
    }

    #[test]
    fn files_of_a_directory_cannot_be_opened_again_for_writing_nor_by_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("state"), "state").unwrap();
        fs::write(root.path().join("memory"), "memory").unwrap();
        std::os::unix::fs::symlink("state", root.path().join("link")).unwrap();
        let dir = File::open(root.path()).unwrap();
        let [state, memory] = open_all(dir.as_fd(), ["state", "memory"]).unwrap();
        for file in [&state, &memory] {
            let error = reopened(file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        assert_eq!(
            (read(state), read(memory)),
            ("state".into(), "memory".into())
        );
        let error = open_all(dir.as_fd(), ["link"]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = open_all(dir.as_fd(), ["none"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_copy_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, "kernel").unwrap();
        let copy = sealed_copy(&File::open(&path).unwrap()).unwrap();
        assert!(reopened(&copy).and_then(|mut it| it.write(b"x")).is_err());
        assert_eq!(read(copy), "kernel");
    }

    #[test]
    fn a_missing_file_is_no_such_file() {
        let error = open(Path::new("/nonexistent/kernel")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
