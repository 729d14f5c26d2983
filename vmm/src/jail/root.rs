//! The root directory of a jailed process.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};
use rustix::thread::UnshareFlags;

use super::{JailError, step};

/// The content of a jailed process's root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// This directory, read-only, with everything that is mounted below it, now or later.
    Directory(PathBuf),
    /// The libraries and data of the host's distribution, read-only, for a program of it. It is
    /// assembled in this directory, which is empty.
    Program(PathBuf),
}

/// The host's directories that a program needs: libraries and data. No configuration, no home, no
/// state.
const PROGRAM_DIRS: &[&str] = &["usr", "lib", "lib64"];

/// The dynamic loader's index of libraries outside the standard directories.
const LOADER_CACHE: &str = "etc/ld.so.cache";

/// Devices that libraries expect to find.
const PROGRAM_DEVICES: &[&str] = &["dev/null", "dev/zero", "dev/urandom"];

impl Root {
    /// Makes this the root of the calling process, in a new mount namespace.
    ///
    /// The namespace is a slave of the host's: later mounts and unmounts of the host below a shared
    /// directory propagate into it, and none propagate out.
    pub(super) fn enter(&self) -> Result<(), JailError> {
        super::unshare(UnshareFlags::NEWNS).map_err(step("unshare the mount namespace"))?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).map_err(step("make the mounts slaves of the host's"))?;
        let root = match self {
            Self::Directory(path) => {
                at("bind", path, mount_bind_recursive(path, path))?;
                make_read_only_for_guest(path)?;
                path
            }
            Self::Program(stage) => {
                populate(stage)?;
                stage
            }
        };
        pivot(root)
    }
}

fn at<T, E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
    result: Result<T, E>,
) -> Result<T, JailError> {
    result.map_err(|source| JailError::Root {
        action,
        path: path.to_owned(),
        source: source.into(),
    })
}

/// Mounts an empty file system on `stage` and fills it for [`Root::Program`].
fn populate(stage: &Path) -> Result<(), JailError> {
    mount_tmpfs(stage)?;
    for dir in PROGRAM_DIRS {
        let (host, here) = (Path::new("/").join(dir), stage.join(dir));
        match fs::symlink_metadata(&host) {
            Ok(metadata) if metadata.is_symlink() => {
                let target = at("read", &host, fs::read_link(&host))?;
                at("link", &here, std::os::unix::fs::symlink(target, &here))?;
            }
            Ok(_) => bind_read_only(&host, &here, true)?,
            Err(_) => {}
        }
    }
    at("create", stage, fs::create_dir(stage.join("etc")))?;
    at("create", stage, fs::create_dir(stage.join("dev")))?;
    for file in PROGRAM_DEVICES.iter().chain([&LOADER_CACHE]) {
        let host = Path::new("/").join(file);
        if host.exists() {
            bind_read_only(&host, &stage.join(file), false)?;
        }
    }
    let proc = stage.join("proc");
    at("create", &proc, fs::create_dir(&proc))?;
    at(
        "mount proc on",
        &proc,
        mount("proc", &proc, "proc", hardened(), Some(SUBSET_PID)),
    )?;
    at(
        "make read-only",
        stage,
        remount_read_only(stage, MountFlags::empty()),
    )
}

/// Mount options of proc: only processes, not the kernel's settings.
const SUBSET_PID: &CStr = c"subset=pid,hidepid=2";

fn hardened() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

fn mount_tmpfs(path: &Path) -> Result<(), JailError> {
    const OPTIONS: &CStr = c"mode=755,size=64k";
    let flags = MountFlags::NOSUID;
    at(
        "mount tmpfs on",
        path,
        mount("tmpfs", path, "tmpfs", flags, Some(OPTIONS)),
    )
}

fn remount_read_only(path: &Path, more: MountFlags) -> rustix::io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | more;
    mount_remount(path, flags, "")
}

/// Makes the shared directory itself read-only for the guest, but not the mounts in it. The host
/// mounts there later, by path, and must find only directories that it created itself.
fn make_read_only_for_guest(shared: &Path) -> Result<(), JailError> {
    let flags = MountFlags::NODEV | MountFlags::NOEXEC;
    at("make read-only", shared, remount_read_only(shared, flags))
}

/// Bind-mounts `host` without the mounts below it.
fn bind_read_only(host: &Path, here: &Path, is_dir: bool) -> Result<(), JailError> {
    if is_dir {
        at("create", here, fs::create_dir(here))?;
    } else {
        at("create", here, fs::File::create(here))?;
    }
    at("bind", host, mount_bind(host, here))?;
    at(
        "make read-only",
        here,
        remount_read_only(here, MountFlags::empty()),
    )
}

/// Makes a mount point the root and detaches the old root.
fn pivot(root: &Path) -> Result<(), JailError> {
    at("enter", root, rustix::process::chdir(root))?;
    // pivot_root(2): the old root is mounted over the new one, and detached at once.
    at("pivot to", root, rustix::process::pivot_root(c".", c"."))?;
    at(
        "detach the host's root from",
        root,
        unmount(c".", UnmountFlags::DETACH),
    )?;
    at("enter", root, rustix::process::chdir("/"))
}
