//! Makes mounts read-only or writable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use rvm_sys::mount::{AttrChange, attr, change_attributes};

/// Makes the mount at `place` read-only or writable, and with `recursive` the mounts below it.
///
/// Kernels before Linux 5.12 can change only a single mount. Mounts below then stay as they are,
/// with a warning in the log.
pub fn set_read_only(place: &Path, read_only: bool, recursive: bool) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mount = rustix::fs::open(place, flags, Mode::empty())?;
    match change_attributes(mount.as_fd(), change(read_only), recursive) {
        Err(Errno::NOSYS) => {
            if recursive {
                tracing::warn!(
                    "{}: rro and rrw hold for mounts below it in the guest alone; the host's \
                     kernel is older than Linux 5.12",
                    place.display()
                );
            }
            remount(place, read_only)
        }
        other => Ok(other?),
    }
}

/// The same for a mount that is attached nowhere yet. Returns whether the kernel could: those
/// before Linux 5.12 change a mount only where it is attached.
pub fn set_detached(mount: BorrowedFd<'_>, read_only: bool, recursive: bool) -> io::Result<bool> {
    match change_attributes(mount, change(read_only), recursive) {
        Err(Errno::NOSYS) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

fn change(read_only: bool) -> AttrChange {
    match read_only {
        true => AttrChange::READ_ONLY,
        false => AttrChange {
            set: 0,
            clear: attr::RDONLY,
        },
    }
}

/// Sets or clears MS_RDONLY among the mount's flags.
fn remount(path: &Path, read_only: bool) -> io::Result<()> {
    let now = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::BIND;
    flags.set(MountFlags::RDONLY, read_only);
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
