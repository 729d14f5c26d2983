//! Mounting a file system by its name, such as an overlay, which may have more layers than mount(2)
//! takes as options.
//!
//! The layers lie below one directory. Relative to it their names are short; if even those are too
//! many, each layer is given in a system call of its own.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::thread::UnshareFlags;
use rvm_sys::namespaces::unshare;

use super::options::Options;

/// The most bytes that mount(2) takes as a file system's options: a page, less the final zero.
const MAX_DATA: usize = 4095;

/// The overlay's option that names the layers.
pub const LOWER: &str = "lowerdir=";

/// Mounts a file system that is not a bind mount.
pub fn mount(kind: &str, source: &str, target: &Path, options: &Options) -> rustix::io::Result<()> {
    let target = std::path::absolute(target).map_err(|_| Errno::INVAL)?;
    match mount_with_options(kind, source, &target, options.flags, &options.data) {
        Err(Errno::TOOBIG) => mount_many_layers(kind, source, &target, options),
        other => other,
    }
}

/// Mounts it if the options are not too long for mount(2).
pub fn mount_with_options(
    kind: &str,
    source: &str,
    target: &Path,
    flags: MountFlags,
    data: &[String],
) -> rustix::io::Result<()> {
    let data = CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
    if data.count_bytes() > MAX_DATA {
        return Err(Errno::TOOBIG);
    }
    rustix::mount::mount(source, target, kind, flags, Some(data.as_c_str()))
}

/// Mounts an overlay whose options are too long for mount(2).
fn mount_many_layers(
    kind: &str,
    source: &str,
    target: &Path,
    options: &Options,
) -> rustix::io::Result<()> {
    let (dir, layers) = common_directory(options).ok_or(Errno::TOOBIG)?;
    let mut data = vec![format!("{LOWER}{}", layers.join(":"))];
    data.extend(other_options(options).cloned());
    // The working directory changes in a thread of its own.
    let mount = || {
        unshare(UnshareFlags::FS)?;
        rustix::process::chdir(&dir)?;
        match mount_with_options(kind, source, target, options.flags, &data) {
            Err(Errno::TOOBIG) => mount_one_by_one(kind, source, target, &layers, options),
            other => other,
        }
    };
    std::thread::scope(|scope| scope.spawn(mount).join()).unwrap_or(Err(Errno::INVAL))
}

/// All options but the one that names the layers.
pub fn other_options(options: &Options) -> impl Iterator<Item = &String> {
    options
        .data
        .iter()
        .filter(|option| !option.starts_with(LOWER))
}

/// The layers of an overlay, without the uppermost.
pub fn lower_layers(options: &Options) -> impl Iterator<Item = &Path> {
    let named = options
        .data
        .iter()
        .filter_map(|option| option.strip_prefix(LOWER));
    named.flat_map(|layers| layers.split(':')).map(Path::new)
}

/// The deepest directory that holds all layers, and the path of each layer from there.
fn common_directory(options: &Options) -> Option<(PathBuf, Vec<String>)> {
    let layers: Vec<&Path> = lower_layers(options).collect();
    let mut dir = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(dir)) {
        dir = dir.parent()?;
    }
    let short = |layer: &&Path| Some(layer.strip_prefix(dir).ok()?.to_str()?.to_owned());
    Some((
        dir.to_owned(),
        layers.iter().map(short).collect::<Option<_>>()?,
    ))
}

/// Gives each layer in a call of its own, which Linux supports since 6.8.
fn mount_one_by_one(
    kind: &str,
    source: &str,
    target: &Path,
    layers: &[String],
    options: &Options,
) -> rustix::io::Result<()> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", source)?;
    for layer in layers {
        fsconfig_set_string(context, "lowerdir+", layer.as_str())?;
    }
    for option in other_options(options) {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context, name, value)?,
            None => fsconfig_set_flag(context, option.as_str())?,
        }
    }
    fsconfig_create(context)?;
    let attributes = attributes(options.flags);
    let made = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(made.as_fd(), "", CWD, target, from_descriptor)
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (
            MountFlags::NODIRATIME,
            MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        ),
    ] {
        attributes.set(attribute, flags.contains(flag));
    }
    attributes
}
