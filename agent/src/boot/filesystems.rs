//! The guest's own mounts.

use std::ffi::CStr;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rvm_protocol::{SHARED_DIR, SHARED_TAG};

use crate::init::STAGING;
use crate::sys::{Doing as _, OsError};

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
}

const fn filesystem(
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
) -> Mount {
    Mount {
        kind,
        at,
        flags,
        data,
    }
}

/// What the agent needs before it can read its parameters or log.
const KERNEL_INTERFACES: [Mount; 3] = [
    filesystem("proc", "/proc", HARDENED, None),
    filesystem("sysfs", "/sys", HARDENED, None),
    filesystem("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755")),
];

const REST: [Mount; 4] = [
    filesystem(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID,
        Some(c"mode=0620,ptmxmode=0666,gid=5"),
    ),
    filesystem("tmpfs", "/run", MountFlags::NOSUID, Some(c"mode=0755")),
    filesystem("tmpfs", "/tmp", MountFlags::NOSUID, Some(c"mode=1777")),
    filesystem("cgroup2", "/sys/fs/cgroup", HARDENED, Some(c"nsdelegate")),
];

/// Where mounts are that lie in no other but the root.
const TOP: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

/// Mounts proc, sysfs and devtmpfs.
pub fn mount_kernel_interfaces() -> Result<(), OsError> {
    KERNEL_INTERFACES.iter().try_for_each(Mount::make)
}

/// Mounts the rest: devpts, /run, /tmp and the cgroup tree.
pub fn mount_rest() -> Result<(), OsError> {
    REST.iter().try_for_each(Mount::make)?;
    make_directory("/run/rvm")?;
    make_directory(STAGING)
}

impl Mount {
    fn make(&self) -> Result<(), OsError> {
        make_directory(self.at)?;
        mount(self.kind, self.at, self.kind, self.flags, self.data)
            .doing(|| format!("mount {} on {}", self.kind, self.at))
    }
}

fn make_directory(path: &str) -> Result<(), OsError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("make directory {path}")),
    }
}

/// Mounts the host's directory.
pub fn mount_shared() -> Result<(), OsError> {
    make_directory(SHARED_DIR)?;
    let kind = "virtiofs";
    mount(SHARED_TAG, SHARED_DIR, kind, MountFlags::empty(), None)
        .doing(|| format!("mount {kind} {SHARED_TAG} on {SHARED_DIR}"))?;
    // Shared, so that a mount in a volume propagates between containers of a pod that ask for it
    // with `rshared` and `rslave`.
    mount_change(SHARED_DIR, MountPropagationFlags::SHARED)
        .doing(|| format!("share the mounts below {SHARED_DIR}"))
}

/// Writes the shared directory's data back and unmounts it. No container is left.
pub fn unmount_shared() {
    if let Err(errno) = unmount(SHARED_DIR, UnmountFlags::empty()) {
        // A process still uses it: its data is written back all the same.
        log::warn!("unmount {SHARED_DIR}: {errno}");
        rustix::fs::sync();
    }
}

/// Makes the initial root read-only and fit for pivot_root(2) in the containers' namespaces.
///
/// The agent's binary lies in it. A container can open that file through /proc/<pid>/exe of a
/// process that is about to enter the container (CVE-2019-5736), so the whole file system is
/// read-only, through any mount in any namespace.
///
/// pivot_root(2) refuses the initial root, which has no parent mount. A bind mount of it on itself
/// has one. The other mounts move there: one that stayed below would be in the mount namespace of
/// every container, out of its sight, and a proc or sysfs that nothing covers in a namespace lets
/// any user who makes a user namespace in it mount another, past masked and read-only paths.
pub fn seal_root() -> Result<(), OsError> {
    mount_remount("/", MountFlags::RDONLY, c"").doing(|| "make the initial root read-only")?;
    let below = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open the initial root")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags).doing(|| "copy the initial root")?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| "mount the initial root on itself")?;
    for at in TOP {
        move_mount(&below, at, &root, at, MoveMountFlags::empty())
            .doing(|| format!("move the mount on /{at}"))?;
    }
    rustix::process::fchdir(&root).doing(|| "enter the initial root")?;
    rustix::process::chroot(".").doing(|| "change root to the initial root")
}
