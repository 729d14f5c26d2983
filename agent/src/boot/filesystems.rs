//! The guest's own mounts.

use std::ffi::CStr;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rvm_protocol::{SHARED_DIR, SHARED_TAG};

use rustix::process::Pid;

use super::params::Shared;
use crate::init::STAGING;
use crate::sys::clone::{CloneRequest, Cloned, clone_process, exit_now};
use crate::sys::{Doing as _, OsError};

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// `V9FS_MAGIC` of `<linux/magic.h>`.
const V9FS_MAGIC: u64 = 0x0102_1997;

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

/// Mounts proc, sysfs and devtmpfs.
pub fn mount_kernel_interfaces() -> Result<(), OsError> {
    KERNEL_INTERFACES.iter().try_for_each(Mount::make)
}

/// Mounts the rest: devpts, /run, /tmp, the cgroup tree and the shared directory.
pub fn mount_rest(shared: Option<Shared>) -> Result<(), OsError> {
    REST.iter().try_for_each(Mount::make)?;
    make_directory("/run/rvm")?;
    make_directory(STAGING)?;
    if let Some(shared) = shared {
        mount_shared(shared)?;
    }
    Ok(())
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
///
/// For 9p: with `access=client` each user of the guest attaches as itself, so that it owns the
/// files that it creates, and the guest's kernel checks permissions, so that root may act as any
/// user. `cache=mmap` is the weakest mode that can run programs and map files writable. close(2)
/// starts to send a process's data to the host, and syncfs(2) waits for it (see
/// [`start_writing_back`]). A lookup, an open and a stat see the host's changes; the guest's kernel
/// is patched for files that stay open or are mounted themselves. QEMU accepts an `msize` of this
/// size without a warning.
fn mount_shared(shared: Shared) -> Result<(), OsError> {
    make_directory(SHARED_DIR)?;
    let (kind, data) = match shared {
        Shared::VirtioFs => ("virtiofs", None),
        Shared::NineP => (
            "9p",
            Some(c"trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=client"),
        ),
    };
    mount(SHARED_TAG, SHARED_DIR, kind, MountFlags::empty(), data)
        .doing(|| format!("mount {kind} {SHARED_TAG} on {SHARED_DIR}"))?;
    // Shared, so that a mount in a volume propagates between containers of a pod that ask for it
    // with `rshared` and `rslave`.
    mount_change(SHARED_DIR, MountPropagationFlags::SHARED)
        .doing(|| format!("share the mounts below {SHARED_DIR}"))
}

/// Starts a process that waits until the host has what ended processes wrote to the shared
/// directory; returns its id.
///
/// Only 9p needs it, and there it costs little when nothing is dirty: close(2) starts the write and
/// does not wait for it (v9fs_dir_release). virtio-fs writes synchronously when a file is closed
/// and when a mapping ends (fuse_flush, fuse_vma_close); a sync would make the host sync its disk.
pub fn start_writing_back() -> Option<Pid> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(SHARED_DIR, flags, Mode::empty()).ok()?;
    let is_9p = rustix::fs::fstatfs(&root).is_ok_and(|fs| fs.f_type as u64 == V9FS_MAGIC);
    if !is_9p {
        return None;
    }
    // SAFETY: the child makes two system calls.
    #[allow(unsafe_code)]
    match unsafe { clone_process(&CloneRequest::default()) } {
        Ok(Cloned::Child) => {
            let written = rustix::fs::syncfs(&root);
            exit_now(i32::from(written.is_err()))
        }
        Ok(Cloned::Parent { pid, .. }) => Some(pid),
        Err(errno) => {
            log::warn!("write back {SHARED_DIR}: {errno}");
            None
        }
    }
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
/// has one.
pub fn seal_root() -> Result<(), OsError> {
    mount_remount("/", MountFlags::RDONLY, c"").doing(|| "make the initial root read-only")?;
    let tree = open_tree(
        CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )
    .doing(|| "copy the initial root")?;
    move_mount(&tree, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| "mount the initial root on itself")?;
    rustix::process::fchdir(&tree).doing(|| "enter the initial root")?;
    rustix::process::chroot(".").doing(|| "change root to the initial root")
}
