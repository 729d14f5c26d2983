//! Makes mounts read-only.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use rvm_sys::mount::{AttrChange, change_attributes};

/// Makes the mount at `place` read-only, and with `recursive` the mounts below it.
///
/// Kernels before Linux 5.12 can change only a single mount. Mounts below then stay as they are,
/// with a warning in the log.
pub fn make_read_only(place: &Path, recursive: bool) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mount = rustix::fs::open(place, flags, Mode::empty())?;
    match change_attributes(mount.as_fd(), AttrChange::READ_ONLY, recursive) {
        Err(Errno::NOSYS) => {
            if recursive {
                tracing::warn!(
                    "{}: mounts below it are read-only in the guest alone; the host's kernel is \
                     older than Linux 5.12",
                    place.display()
                );
            }
            remount(place)
        }
        other => Ok(other?),
    }
}

/// Adds MS_RDONLY to the mount's flags.
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
