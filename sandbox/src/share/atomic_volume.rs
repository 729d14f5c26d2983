//! Volumes that their owner updates atomically, as kubelet's AtomicWriter does for ConfigMaps,
//! Secrets and projected volumes: the files are in a directory behind the symbolic link `..data`,
//! and an update exchanges the link. Programs in the guest watch for that with inotify(7), but
//! virtio-fs does not report the host's changes. So the guest gets a copy of such a volume,
//! and the agent repeats every update on the copy, which the guest's kernel reports as any change.
//!
//! A copy travels in one message, which limits its size; larger volumes are shared as all others
//! are.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rvm_protocol::agent::{UpdateVolumeRequest, VolumeFile, VolumeLink};

/// The link that an update exchanges.
pub const DATA: &str = "..data";

/// The largest copy in bytes, names included: a message has 4 MiB at the most. A ConfigMap or
/// Secret has 1 MiB at the most.
const MAX_BYTES: u64 = 3 << 20;

/// The most files and directories in a copy.
const MAX_FILES: usize = 4096;

/// The deepest nesting of directories in a copy.
const MAX_DEPTH: usize = 16;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Whether a directory is an atomically updated volume that can be copied.
pub fn is_atomic_volume(path: &Path) -> bool {
    fs::symlink_metadata(path.join(DATA)).is_ok_and(|found| found.is_symlink())
        && read_volume(path)
            .inspect_err(|error| {
                tracing::info!(
                    "updates of {} do not reach the guest: {error}",
                    path.display()
                );
            })
            .is_ok()
}

/// Reads a whole volume. Another container may write to the directory at the same time, so no link
/// in it is followed: nothing outside of it is read.
pub fn read_volume(path: &Path) -> io::Result<UpdateVolumeRequest> {
    let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
    let version = link(&root, DATA)?;
    if !is_plain(&version) {
        return Err(unsupported("..data leads elsewhere"));
    }
    let mut contents = UpdateVolumeRequest {
        root: Some(file(String::new(), &rustix::fs::fstat(&root)?, Vec::new())).into(),
        ..Default::default()
    };
    let mut room = MAX_BYTES;
    let files = openat(&root, &version, DIRECTORY, Mode::empty())?;
    read_files(&files, "", 0, &mut room, &mut contents)?;
    contents.version = version;
    for name in names(&root)? {
        if name.starts_with("..") {
            continue;
        }
        let target = link(&root, &name)?;
        spend(&mut room, name.len() + target.len())?;
        if contents.links.len() == MAX_FILES {
            return Err(unsupported("it has too many files"));
        }
        contents.links.push(VolumeLink {
            name,
            target,
            ..Default::default()
        });
    }
    Ok(contents)
}

fn read_files(
    dir: &OwnedFd,
    prefix: &str,
    depth: usize,
    room: &mut u64,
    contents: &mut UpdateVolumeRequest,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(unsupported("directories lie too deep in it"));
    }
    for name in names(dir)? {
        let path = format!("{prefix}{name}");
        spend(room, path.len())?;
        if contents.files.len() == MAX_FILES {
            return Err(unsupported("it has too many files"));
        }
        // The type is checked before, because opening a device has effects, and again after,
        // because the file may have been replaced.
        let found = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let below = openat(dir, &name, DIRECTORY, Mode::empty())?;
                let found = rustix::fs::fstat(&below)?;
                contents.files.push(file(path.clone(), &found, Vec::new()));
                read_files(&below, &format!("{path}/"), depth + 1, room, contents)?;
            }
            FileType::RegularFile => {
                let (found, bytes) = read_file(openat(dir, &name, FILE, Mode::empty())?, *room)?;
                spend(room, bytes.len())?;
                contents.files.push(file(path, &found, bytes));
            }
            _ => return Err(unsupported("it has more than files and directories")),
        }
    }
    Ok(())
}

fn read_file(fd: OwnedFd, room: u64) -> io::Result<(Stat, Vec<u8>)> {
    let found = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(unsupported("it has more than files and directories"));
    }
    let mut bytes = Vec::new();
    // One byte more shows that the file is too large.
    fs::File::from(fd).take(room + 1).read_to_end(&mut bytes)?;
    Ok((found, bytes))
}

/// The names in a directory, sorted, so that two reads of the same volume are equal.
fn names(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned().into_string();
        let name = name.map_err(|_| unsupported("a name is no text"))?;
        if name == "." || name == ".." {
            continue;
        }
        // `..data` and the directories of two versions come on top.
        if names.len() > MAX_FILES + 8 {
            return Err(unsupported("it has too many files"));
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn link(dir: &OwnedFd, name: &str) -> io::Result<String> {
    let target = readlinkat(dir, name, Vec::new())?.into_string();
    target.map_err(|_| unsupported("a link is no text"))
}

fn file(path: String, found: &Stat, content: Vec<u8>) -> VolumeFile {
    VolumeFile {
        path,
        mode: found.st_mode,
        uid: found.st_uid,
        gid: found.st_gid,
        content,
        ..Default::default()
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

fn spend(room: &mut u64, bytes: usize) -> io::Result<()> {
    let left = room.checked_sub(bytes as u64);
    *room = left.ok_or_else(|| unsupported("it is too large"))?;
    Ok(())
}

fn unsupported(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn volume(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("..1/sub")).unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join("..1").join(name), bytes).unwrap();
        }
        symlink("..1", dir.path().join(DATA)).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        dir
    }

    #[test]
    fn a_volume_is_read_with_its_links() {
        let dir = volume(&[("key", b"value"), ("sub/other", b"")]);
        let contents = read_volume(dir.path()).unwrap();
        let paths: Vec<_> = contents.files.iter().map(|file| &*file.path).collect();
        assert_eq!(paths, ["key", "sub", "sub/other"]);
        assert_eq!(contents.files[0].content, b"value");
        assert_eq!(
            (&*contents.version, &*contents.links[0].target),
            ("..1", "..data/key")
        );
        assert!(is_atomic_volume(dir.path()));
    }

    #[test]
    fn links_out_of_the_volume_are_not_followed() {
        let secret = tempfile::tempdir().unwrap();
        fs::write(secret.path().join("key"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(secret.path(), dir.path().join("..1")).unwrap();
        symlink("..1", dir.path().join(DATA)).unwrap();
        assert!(read_volume(dir.path()).is_err(), "by the version's name");
        let dir = volume(&[]);
        symlink(secret.path(), dir.path().join("..1/below")).unwrap();
        assert!(read_volume(dir.path()).is_err(), "below");
        let dir = volume(&[]);
        fs::remove_file(dir.path().join(DATA)).unwrap();
        symlink("../secret", dir.path().join(DATA)).unwrap();
        assert!(read_volume(dir.path()).is_err(), "above");
    }

    #[test]
    fn other_directories_and_large_volumes_are_not_copied() {
        let dir = volume(&[("key", &vec![0; 3 << 20])]);
        assert!(!is_atomic_volume(dir.path()));
        let dir = volume(&[]);
        symlink("/etc/passwd", dir.path().join("..1/link")).unwrap();
        assert!(!is_atomic_volume(dir.path()));
        let dir = volume(&[]);
        fs::write(dir.path().join("plain"), "").unwrap();
        assert!(!is_atomic_volume(dir.path()));
        assert!(!is_atomic_volume(tempfile::tempdir().unwrap().path()));
    }
}
