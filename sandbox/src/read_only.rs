//! Making mounts read-only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

/// Makes the mount at `place` read-only, and with `recursive` all that are mounted below it.
///
/// Kernels before Linux 5.12 can do it to one mount only; what is below is then left as it is, and
/// a line in the log says so.
pub fn make_read_only(place: &Path, recursive: bool) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mount = rustix::fs::open(place, flags, Mode::empty())?;
    match set_read_only(mount.as_fd(), recursive) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSYS) => {
            if recursive {
                tracing::warn!(
                    "{}: mounts below it are read-only in the guest alone; the host's kernel is \
                     older than Linux 5.12",
                    place.display()
                );
            }
            remount(place)
        }
        other => other,
    }
}

/// The kernel's struct mount_attr, of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

#[expect(unsafe_code, reason = "a system call that rustix lacks")]
fn set_read_only(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty string, and `attr` is as large as is said and lives across the
    // call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds "read-only" to what the mount already is.
fn remount(path: &Path) -> io::Result<()> {
    let now = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (is, keep) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(keep, now.contains(is));
    }
    Ok(mount_remount(path, flags, "")?)
}
