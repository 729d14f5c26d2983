//! The container's root: mounted, entered with pivot_root(2), and made read-only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};

use super::plan::ContainerPlan;
use super::targets::{self, Kind};
use crate::sys::{Doing as _, OsError};
use rvm_sys::mount::{AttrChange, change_attributes, set_propagation};

/// Where the root is mounted until pivot_root(2), in every container's own mount namespace.
pub const STAGING: &str = "/run/rvm/root";
/// The mount that [`STAGING`] lies in.
const STAGING_MOUNT: &str = "/run";

pub struct Rootfs {
    mount: OwnedFd,
    propagation: u64,
}

impl Rootfs {
    /// Makes the root a mount of its own at [`STAGING`].
    pub fn prepare(plan: &ContainerPlan) -> Result<Self, OsError> {
        // Mounts of the container do not propagate to the guest, unless config.json asks for it.
        let propagation = match plan.rootfs_propagation {
            0 => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            flags => MountPropagationFlags::from_bits_retain(flags as _),
        };
        mount_change("/", propagation).doing(|| "set the propagation of /")?;
        // pivot_root(2) refuses a root whose parent mount is shared.
        mount_change(STAGING_MOUNT, MountPropagationFlags::PRIVATE)
            .doing(|| format!("make {STAGING_MOUNT} private"))?;

        let rootfs = plan.rootfs.as_str();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = open_tree(CWD, rootfs, flags).doing(|| format!("open rootfs {rootfs}"))?;
        set_propagation(mount.as_fd(), libc::MS_PRIVATE, true)
            .doing(|| format!("make rootfs {rootfs} private"))?;
        move_mount(
            &mount,
            "",
            CWD,
            STAGING,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .doing(|| format!("mount rootfs {rootfs}"))?;
        Ok(Self {
            mount,
            propagation: plan.rootfs_propagation,
        })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Makes a directory of the container with its parents.
    pub fn make_directory(&self, path: &str) -> Result<(), OsError> {
        targets::open_or_make(self.as_fd(), path, Kind::Directory).map(drop)
    }

    /// Makes the root read-only, but not the mounts below it.
    pub fn make_read_only(&self) -> Result<(), OsError> {
        change_attributes(self.as_fd(), AttrChange::READ_ONLY, false)
            .doing(|| "make the rootfs read-only")
    }

    /// Makes the root that of this process and unmounts the guest's.
    pub fn pivot(self) -> Result<(), OsError> {
        let old = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .doing(|| "open the old root")?;
        rustix::process::fchdir(&self.mount).doing(|| "enter the new root")?;
        // With one directory for both, the old root is mounted on top of the new one and needs no
        // directory of its own; see pivot_root(2).
        rustix::process::pivot_root(".", ".").doing(|| "pivot_root")?;
        rustix::process::fchdir(&old).doing(|| "enter the old root")?;
        // The unmount must not propagate to the guest.
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change(".", slave).doing(|| "set the propagation of the old root")?;
        unmount(".", UnmountFlags::DETACH).doing(|| "unmount the old root")?;
        rustix::process::chdir("/").doing(|| "enter /")?;
        if self.propagation != 0 {
            let flags = MountPropagationFlags::from_bits_retain(self.propagation as _);
            mount_change("/", flags).doing(|| "set linux.rootfsPropagation")?;
        }
        Ok(())
    }
}
