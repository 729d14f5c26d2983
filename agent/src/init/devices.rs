//! Device nodes and the links of /dev.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;

use super::guest_devices;
use super::mounts::attach;
use super::plan::{ContainerPlan, DevicePlan};
use super::rootfs::Rootfs;
use super::targets::{self, Kind};
use crate::sys::{Doing as _, OsError};

/// Links that the runtime specification requires.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Makes the devices and links.
pub fn populate(root: &Rootfs, plan: &ContainerPlan) -> Result<(), OsError> {
    let umask = rustix::process::umask(Mode::empty());
    let made = populate_without_umask(root, plan);
    rustix::process::umask(umask);
    made
}

fn populate_without_umask(root: &Rootfs, plan: &ContainerPlan) -> Result<(), OsError> {
    for device in &plan.devices {
        if plan.bind_devices {
            bind_node(root, device)?;
            continue;
        }
        match make_node(root, device) {
            // The file system of the shared root refuses device nodes.
            Err(OsError {
                errno: Errno::PERM, ..
            }) => bind_node(root, device)?,
            result => result?,
        }
    }
    // Terminals come from the container's own devpts.
    link(root, "pts/ptmx", "/dev/ptmx", true)?;
    for (target, path) in LINKS {
        link(root, target, path, false)?;
    }
    Ok(())
}

fn make_node(root: &Rootfs, device: &DevicePlan) -> Result<(), OsError> {
    let (parent, name) = targets::open_parent(root.as_fd(), &device.path)?;
    let kind = FileType::from_raw_mode(device.mode);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    let number = makedev(device.major, device.minor);
    let doing = || format!("make device {}", device.path);
    match rustix::fs::mknodat(&parent, &name, kind, mode, number) {
        // The image's own, or a mount's.
        Err(Errno::EXIST) => return Ok(()),
        result => result.doing(doing)?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(
        &parent,
        &name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .doing(doing)
}

/// Bind-mounts the guest's own node.
fn bind_node(root: &Rootfs, device: &DevicePlan) -> Result<(), OsError> {
    let kind = match FileType::from_raw_mode(device.mode) {
        FileType::BlockDevice => "block",
        _ => "char",
    };
    let (by_number, major, minor) = (guest_devices::BY_NUMBER, device.major, device.minor);
    let node = guest_devices::node(&format!("{by_number}{kind}/{major}:{minor}"))?;
    let target = targets::open_or_make(root.as_fd(), &device.path, Kind::File)?;
    attach(&node, &target)
}

fn link(root: &Rootfs, target: &str, path: &str, replace: bool) -> Result<(), OsError> {
    let (parent, name): (OwnedFd, String) = targets::open_parent(root.as_fd(), path)?;
    if replace {
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(|| format!("remove {path}")),
        }
    }
    match rustix::fs::symlinkat(target, &parent, &name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("link {path} to {target}")),
    }
}
