//! The shared directory: the part of the host's files that the guest sees.
//!
//! It is a tmpfs below the sandbox's directory, with a bind mount for every root and volume:
//! `<container id>/rootfs` and `<container id>/mounts/<n>`. The guest cannot write to the tmpfs,
//! only to the mounts in it, so it never holds a name that rvm has not created. Its mounts are
//! shared, in the sense of mount_namespaces(7), so that the jailed machine, whose mount namespace
//! is a slave, sees later mounts. Each bind mount is a slave of its source or private, so that
//! unmounting it unmounts nothing of the host's.

mod atomic_volume;
mod empty_root;
mod layout;
mod references;

use std::ffi::CStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags, flock, statx,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use oci_spec::runtime::Spec;

use crate::host::detached;
use crate::host::idmap::Mapper;
use crate::host::overlay;
use crate::host::read_only::{set_detached, set_read_only};
use rvm_sys::fault_point;

pub use atomic_volume::{DATA, is_atomic_volume, read_volume};
pub use empty_root::make_empty_root;
pub use layout::{CONFIG_FILE, DISKS, ROOT, SHARED, STAGE, SharedMount, VOLUMES};

/// The directory of mounts that containers of a pod share. A container's id has no `@`.
const POD_MOUNTS: &str = "@together";

/// In a container's directory, files that name the pod mounts that it uses.
const REFERENCES: &str = "held";

/// Mount options of the tmpfs. rvm alone writes to it: mount points, and for a container with hooks
/// its configuration of up to 16 MiB, but rarely more than some KiB. It takes no memory before it
/// is written.
const OPTIONS: &CStr = c"mode=755,size=256m";

/// A change of the shared directory failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct StorageError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Adds the action and the path to an error.
pub fn at<T, E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
    result: Result<T, E>,
) -> Result<T, StorageError> {
    result.map_err(|source| StorageError {
        action,
        path: path.to_owned(),
        source: source.into(),
    })
}

/// Creates the shared directory and the stage below `sandbox`, both empty.
pub fn prepare(sandbox: &Path) -> Result<PathBuf, StorageError> {
    let shared = sandbox.join(SHARED);
    make_dir(&shared)?;
    make_dir(&sandbox.join(STAGE))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounted = mount("rvm", &shared, "tmpfs", flags, Some(OPTIONS));
    at("mount tmpfs on", &shared, mounted)?;
    at("mount tmpfs on", &shared, fault_point!("share.prepared"))?;
    propagate(&shared, MountPropagationFlags::PRIVATE)?;
    propagate(&shared, MountPropagationFlags::SHARED)?;
    Ok(shared)
}

/// Mounts a directory or file of the host, or an overlay, in the shared directory.
pub fn share(shared: &Path, wanted: &SharedMount) -> Result<(), StorageError> {
    let place = shared.join(&wanted.place);
    let _lock = wanted
        .reference
        .is_some()
        .then(|| lock(shared))
        .transpose()?;
    if let Some(reference) = &wanted.reference {
        let reference = shared.join(reference);
        reference.parent().map_or(Ok(()), make_dir)?;
        at("create", &reference, fs::File::create(&reference))?;
        if is_mount_point(&place) {
            return Ok(());
        }
    }
    let mount = make(wanted, &place)?;
    at("bind", &place, fault_point!("share.bind"))?;
    let is_set = attach(&mount, &place, wanted)?;
    at("bind", &place, fault_point!("share.bound"))?;
    let inherit = match wanted.follows_host {
        true => MountPropagationFlags::DOWNSTREAM,
        false => MountPropagationFlags::PRIVATE,
    };
    propagate(&place, inherit | MountPropagationFlags::REC)?;
    propagate(
        &place,
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )?;
    if !is_set {
        for (read_only, recursive) in attributes(wanted) {
            let set = set_read_only(&place, read_only, recursive);
            at("set whether one can write to", &place, set)?;
        }
    }
    Ok(())
}

/// Whether the mount is to be read-only, and whether that is about the mounts below it too, in the
/// order in which they are applied.
fn attributes(wanted: &SharedMount) -> impl Iterator<Item = (bool, bool)> {
    let top = wanted.read_only.map(|read_only| (read_only, false));
    let all = wanted.all_read_only.map(|read_only| (read_only, true));
    top.into_iter().chain(all)
}

/// Makes the mount, which is attached nowhere yet, and the file or directory that it is for.
fn make(wanted: &SharedMount, place: &Path) -> Result<OwnedFd, StorageError> {
    if let Some(options) = &wanted.overlay {
        make_dir(place)?;
        let made = overlay::detached(options, place);
        return at("mount the overlay", &wanted.source, made);
    }
    let source = open_source(&wanted.source)?;
    make_mount_point(&source, &wanted.source, place)?;
    let made = detached::copy(source.as_fd(), wanted.recursive);
    at("bind", &wanted.source, made)
}

/// Attaches the mount when it is as it should be: a machine that runs gets its own copy of it at
/// that moment, which no later change reaches. Returns false if the kernel can only change
/// attributes after that.
fn attach(mount: &OwnedFd, place: &Path, wanted: &SharedMount) -> Result<bool, StorageError> {
    if let Some(map) = &wanted.idmap {
        let mapped = Mapper::new(map).and_then(|mapper| mapper.map(mount.as_fd()));
        at("map the ids of", &wanted.source, mapped)?;
    }
    let mut is_set = true;
    for (read_only, recursive) in attributes(wanted) {
        let set = set_detached(mount.as_fd(), read_only, recursive);
        is_set &= at("set whether one can write to", place, set)?;
    }
    let attached = detached::attach(mount.as_fd(), place);
    at("bind", &wanted.source, attached)?;
    Ok(is_set)
}

/// Gives a container of a pod the same mount as other containers with the same source and options.
pub fn share_in_pod(wanted: &mut SharedMount, id: &str) {
    // Sharing it will fail, with the reason.
    let Ok(found) = fs::metadata(&wanted.source) else {
        return;
    };
    let mut hasher = DefaultHasher::new();
    (found.dev(), found.ino(), &wanted.source).hash(&mut hasher);
    (wanted.recursive, wanted.follows_host).hash(&mut hasher);
    (wanted.read_only, wanted.all_read_only).hash(&mut hasher);
    format!("{:?}", wanted.idmap).hash(&mut hasher);
    let name = format!("{:016x}", hasher.finish());
    wanted.place = Path::new(POD_MOUNTS).join(&name);
    wanted.reference = Some(Path::new(id).join(REFERENCES).join(name));
}

/// The names of the mounts that a container shares with others of its pod.
pub fn pod_mounts(shared: &Path, id: &str) -> Result<Vec<String>, StorageError> {
    references::names_in(&shared.join(id).join(REFERENCES))
}

fn is_mount_point(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    statx(CWD, path, flags, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Writes the guest's configuration beside the container's root. Together they are the bundle in
/// the state that hooks in the guest receive.
pub fn write_bundle(shared: &Path, id: &str, spec: &Spec) -> Result<(), StorageError> {
    let path = shared.join(id).join(CONFIG_FILE);
    let text = serde_json::to_vec(spec).map_err(io::Error::from);
    at("write", &path, text.and_then(|text| fs::write(&path, text)))
}

/// Unmounts and removes the files of one container. Missing files are no error.
pub fn unshare(shared: &Path, container_id: &str) -> Result<(), StorageError> {
    let container = shared.join(container_id);
    if !at("examine", &container, container.try_exists())? {
        return Ok(());
    }
    let device = match fs::symlink_metadata(shared) {
        Err(error) if is_gone(&error) => return Ok(()),
        found => at("examine", shared, found)?.dev(),
    };
    at("unmount", &container, fault_point!("share.unshare"))?;
    let _lock = lock(shared)?;
    let names = references::names_in(&container.join(REFERENCES))?;
    let cleared = clear(&container, device).and_then(|()| {
        names
            .iter()
            .try_for_each(|name| match references::is_used(shared, name)? {
                true => Ok(()),
                false => clear(&shared.join(POD_MOUNTS).join(name), device),
            })
    });
    match cleared {
        // Another process is removing the whole sandbox.
        Err(error) if is_gone(&error.source) => Ok(()),
        cleared => cleared,
    }
}

/// Unmounts and removes one mount of a file. A missing one, or a shared directory that has been
/// removed, is no error.
pub(crate) fn unshare_file(shared: &Path, place: &Path) -> Result<(), StorageError> {
    let device = fs::symlink_metadata(shared).map(|found| found.dev());
    let cleared =
        at("examine", shared, device).and_then(|device| clear(&shared.join(place), device));
    match cleared {
        Err(error) if is_gone(&error.source) => Ok(()),
        cleared => cleared,
    }
}

/// Serializes changes of the pod mounts.
fn lock(shared: &Path) -> Result<OwnedFd, StorageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = at(
        "open",
        shared,
        rustix::fs::open(shared, flags, Mode::empty()),
    )?;
    let locked = retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive));
    at("lock", shared, locked)?;
    Ok(dir)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Unmounts and removes what [`share`] has created. `device` is the shared directory's: a file on
/// another device is the host's, and is never removed.
fn clear(path: &Path, device: u64) -> Result<(), StorageError> {
    unmount_all(path)?;
    let found = at("examine", path, fs::symlink_metadata(path))?;
    if found.dev() != device {
        return at("unmount", path, Err(Errno::BUSY));
    }
    if !found.is_dir() {
        return at("remove", path, fs::remove_file(path));
    }
    for entry in at("list", path, fs::read_dir(path))? {
        clear(&at("list", path, entry)?.path(), device)?;
    }
    remove_dir(path)
}

/// Removes the shared directory and the stage. Missing ones are no error.
pub fn remove(sandbox: &Path) -> Result<(), StorageError> {
    let shared = sandbox.join(SHARED);
    at("unmount", &shared, fault_point!("share.remove"))?;
    unmount_all(&shared)?;
    at("remove", &shared, fault_point!("share.unmounted"))?;
    [shared, sandbox.join(STAGE)]
        .iter()
        .try_for_each(|dir| remove_dir(dir))
}

/// Unmounts all mounts on `path`, with those below.
fn unmount_all(path: &Path) -> Result<(), StorageError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return at("unmount", path, Err(error)),
        }
    }
}

fn remove_dir(path: &Path) -> Result<(), StorageError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => at("remove", path, other),
    }
}

fn make_dir(path: &Path) -> Result<(), StorageError> {
    let mut builder = fs::DirBuilder::new();
    at(
        "create",
        path,
        builder.mode(0o711).recursive(true).create(path),
    )
}

fn open_source(path: &Path) -> Result<OwnedFd, StorageError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    at("bind", path, rustix::fs::open(path, flags, Mode::empty()))
}

fn make_mount_point(source: &OwnedFd, path: &Path, place: &Path) -> Result<(), StorageError> {
    let stat = at("bind", path, rustix::fs::fstat(source))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => make_dir(place),
        FileType::RegularFile => {
            place.parent().map_or(Ok(()), make_dir)?;
            at("create", place, fs::File::create(place))?;
            Ok(())
        }
        kind => {
            let reason = format!("a {} of the host cannot be shared with a guest", name(kind));
            at(
                "bind",
                path,
                Err(io::Error::new(io::ErrorKind::Unsupported, reason)),
            )
        }
    }
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "socket",
        FileType::Fifo => "FIFO",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "file of this kind",
    }
}

fn propagate(path: &Path, flags: MountPropagationFlags) -> Result<(), StorageError> {
    at("set the propagation of", path, mount_change(path, flags))
}

#[cfg(test)]
mod tests;
