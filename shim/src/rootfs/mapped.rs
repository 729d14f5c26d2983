//! Root file systems whose owners are mapped, for a container in a user namespace, as containerd's
//! mount package maps them: of an overlay the lower layers, of any other file system the whole.
//! The upper layer has the container's own owners already.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount,
    open_tree,
};
use rustix::thread::UnshareFlags;
use rvm_sandbox::host::idmap::{IdMap, Mapper};
use rvm_sys::namespaces::unshare;

use super::filesystem::{LOWER, lower_layers, mount_with_options, other_options};
use super::options::{IdMaps, Options};

/// The map in the kernel. Fails if there is one for users or groups alone.
pub fn mapper(maps: &IdMaps) -> io::Result<Mapper> {
    if maps.uids.is_empty() || maps.gids.is_empty() {
        let reason = "there is only one of the options uidmap and gidmap";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Mapper::new(&IdMap {
        uids: maps.uids.clone(),
        gids: maps.gids.clone(),
        recursive: false,
    })
}

/// Maps the owners of what is mounted at `target`.
pub fn remap(target: &Path, recursive: bool, mapper: &Mapper) -> io::Result<()> {
    let mounted = open(target)?;
    mapper.bind(mounted.as_fd(), target, recursive)
}

/// Mounts an overlay of mapped lower layers.
///
/// overlayfs takes layers by path alone, so each mapped one needs a mount point. A thread makes
/// them in a mount namespace of its own, so nothing is left of them, whenever it ends: the overlay
/// has private copies.
pub fn mount_overlay(
    source: &str,
    target: &Path,
    options: &Options,
    mapper: &Mapper,
) -> io::Result<()> {
    let target = std::path::absolute(target)?;
    let make = || overlay_in_own_namespace(source, &target, options, mapper);
    let made = std::thread::scope(|scope| scope.spawn(make).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts it ended")))?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(made.as_fd(), "", CWD, &target, from_descriptor)?)
}

/// The layers get mount points by their numbers in a tmpfs, and the overlay is mounted over it.
/// Returns a detached mount of it.
fn overlay_in_own_namespace(
    source: &str,
    target: &Path,
    options: &Options,
    mapper: &Mapper,
) -> io::Result<OwnedFd> {
    unshare(UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    // A mount of another namespace cannot be cloned.
    let layers = lower_layers(options)
        .map(open)
        .collect::<io::Result<Vec<_>>>()?;
    let size = Some(c"mode=700,size=64k");
    rustix::mount::mount("rvm", target, "tmpfs", MountFlags::empty(), size)?;
    rustix::process::chdir(target)?;
    for (number, layer) in layers.iter().enumerate() {
        let point = PathBuf::from(number.to_string());
        fs::create_dir(&point)?;
        mapper.bind(layer.as_fd(), &point, false)?;
    }
    let numbers: Vec<String> = (0..layers.len()).map(|number| number.to_string()).collect();
    let lower = format!("{LOWER}{}", numbers.join(":"));
    let data: Vec<String> = [lower]
        .into_iter()
        .chain(other_options(options).cloned())
        .collect();
    mount_with_options("overlay", source, target, options.flags, &data)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, target, flags)?)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map_err(|errno| io::Error::other(format!("{}: {errno}", path.display())))
}
