//! Idmapped bind mounts (mount_setattr(2), `MOUNT_ATTR_IDMAP`).
//!
//! The host maps the ids because virtio-fs in the guest cannot: the machine reads and writes
//! through the idmapped mount, and the guest sees the mapped owners.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Pid, WaitOptions, waitpid};

use rvm_sys::mount::map_ids;

use super::detached;

/// The id map of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Lines of `id on disk, id in the mount, count`, as in /proc/pid/uid_map.
    pub uids: String,
    /// As in /proc/pid/gid_map.
    pub gids: String,
    /// Also maps the mounts below.
    pub recursive: bool,
}

/// A map in the kernel, for any number of mounts.
#[derive(Debug)]
pub struct Mapper {
    userns: OwnedFd,
    /// Also maps the mounts below.
    recursive: bool,
}

impl Mapper {
    /// Fails if the map is empty or the kernel does not take it.
    pub fn new(map: &IdMap) -> io::Result<Self> {
        Ok(Self {
            userns: user_namespace(map)?,
            recursive: map.recursive,
        })
    }

    /// Bind mounts `source` on `place`, with the mounts below it if `recursive`.
    pub fn bind(&self, source: BorrowedFd<'_>, place: &Path, recursive: bool) -> io::Result<()> {
        let mount = detached::copy(source, recursive)?;
        self.map(mount.as_fd())?;
        detached::attach(mount.as_fd(), place)
    }

    /// Maps the ids of a mount that is attached nowhere yet.
    pub fn map(&self, mount: BorrowedFd<'_>) -> io::Result<()> {
        Ok(map_ids(mount, self.userns.as_fd(), self.recursive)?)
    }
}

/// Creates a user namespace with this map. A child process holds it until its file is open.
fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    if map.uids.is_empty() || map.gids.is_empty() {
        // The kernel accepts an empty write and maps nothing.
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the map is empty",
        ));
    }
    let (mut ours, theirs) = UnixStream::pair()?;
    let pid = fork_into_namespace(&theirs)?;
    drop(theirs);
    // The child writes a byte when it is in the namespace, and exits on errors.
    let opened = ours.read_exact(&mut [0]).and_then(|()| {
        let dir = format!("/proc/{}", pid.as_raw_nonzero());
        fs::write(format!("{dir}/uid_map"), with_root(&map.uids))?;
        fs::write(format!("{dir}/gid_map"), with_root(&map.gids))?;
        fs::File::open(format!("{dir}/ns/user")).map(OwnedFd::from)
    });
    // Lets the child exit.
    let _ = ours.write_all(&[0]);
    waitpid(Some(pid), WaitOptions::empty())?;
    opened
}

/// The owner on disk of files that root creates through a mount whose map does not include root:
/// the last valid id, which no user has.
///
/// QEMU's file server creates a file as root before it changes the owner, and the kernel does not
/// let a user without a mapping create files.
const ROOT_ON_DISK: u32 = u32::MAX - 1;

fn with_root(lines: &str) -> String {
    let parse = |line: &str| -> Option<[u64; 3]> {
        let mut fields = line.split_whitespace().map(str::parse);
        Some([
            fields.next()?.ok()?,
            fields.next()?.ok()?,
            fields.next()?.ok()?,
        ])
    };
    let taken = lines.lines().filter_map(parse).any(|[disk, mount, count]| {
        mount == 0 || (disk..disk.saturating_add(count)).contains(&u64::from(ROOT_ON_DISK))
    });
    match taken {
        true => lines.to_owned(),
        false => format!("{lines}{ROOT_ON_DISK} 0 1\n"),
    }
}

/// Forks a process that creates a user namespace, writes a byte to the socket, and exits when it
/// reads a byte or the end of the socket.
#[expect(unsafe_code, reason = "fork")]
fn fork_into_namespace(socket: &UnixStream) -> io::Result<Pid> {
    let fd = socket.as_raw_fd();
    // SAFETY: the child makes system calls alone, and ends in this function.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let byte = [0_u8];
            // SAFETY: the byte lives on this stack, and the calls take nothing else.
            unsafe {
                if libc::unshare(libc::CLONE_NEWUSER) == 0 {
                    libc::write(fd, byte.as_ptr().cast(), 1);
                    let mut answer = [0_u8];
                    libc::read(fd, answer.as_mut_ptr().cast(), 1);
                }
                libc::_exit(0)
            }
        }
        pid => Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    use std::os::unix::fs::{MetadataExt, chown};

    #[test]
    fn owners_are_mapped_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let (source, place) = (dir.path().join("source"), dir.path().join("place"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&place).unwrap();
        mount("test", &source, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(source.join("file"), "").unwrap();
        chown(source.join("file"), Some(7), Some(8)).unwrap();
        let map = IdMap {
            uids: "0 1000 100\n".to_owned(),
            gids: "0 2000 100\n".to_owned(),
            recursive: false,
        };
        let fd = rustix::fs::open(&source, OFlags::PATH, Mode::empty()).unwrap();
        let mapper = Mapper::new(&map).unwrap();
        mapper.bind(fd.as_fd(), &place, false).unwrap();
        let status = fs::metadata(place.join("file")).unwrap();
        assert_eq!((status.uid(), status.gid()), (1007, 2008));
        chown(place.join("file"), Some(1009), Some(2000)).unwrap();
        let status = fs::metadata(source.join("file")).unwrap();
        assert_eq!((status.uid(), status.gid()), (9, 0));
        for path in [&place, &source] {
            unmount(path, UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn root_can_create_files_with_every_map() {
        assert_eq!(with_root("0 1000 10\n"), "0 1000 10\n4294967294 0 1\n");
        assert_eq!(with_root("7 0 10\n"), "7 0 10\n");
        assert_eq!(with_root("0 1 4294967295\n"), "0 1 4294967295\n");
    }

    #[test]
    fn an_empty_map_is_refused() {
        let map = IdMap::default();
        assert!(Mapper::new(&map).is_err());
    }
}
