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

/// What a jailed process finds at its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// This directory, read-only, with all that is mounted below it, now or later.
    Directory(PathBuf),
    /// What a program from the host's distribution needs to run, read-only, and a directory as
    /// /shared.
    Program {
        /// What becomes /shared.
        shared: PathBuf,
        /// An empty directory in which the root is put together.
        stage: PathBuf,
    },
    /// Nothing. The directory is where an empty file system is mounted, out of anybody's sight.
    Empty(PathBuf),
}

/// What a program needs of the host: its libraries and its data. No configuration, no home, no
/// state.
const PROGRAM_DIRS: &[&str] = &["usr", "lib", "lib64"];

/// Where the dynamic loader finds libraries that are not in a standard place.
const LOADER_CACHE: &str = "etc/ld.so.cache";

/// Devices that libraries expect.
const PROGRAM_DEVICES: &[&str] = &["dev/null", "dev/zero", "dev/urandom"];

impl Root {
    /// Makes it the root of the calling process, in a mount namespace of its own.
    ///
    /// The namespace is a slave of the host's: what is mounted below a shared directory later
    /// appears, what is unmounted goes, and nothing leaks out.
    pub(super) fn enter(&self) -> Result<(), JailError> {
        super::unshare(UnshareFlags::NEWNS).map_err(step("unshare the mount namespace"))?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).map_err(step("make the mounts slaves of the host's"))?;
        let root = match self {
            Self::Directory(path) => {
                at("bind", path, mount_bind_recursive(path, path))?;
                seal(path)?;
                path
            }
            Self::Program { shared, stage } => {
                populate(stage, shared)?;
                stage
            }
            Self::Empty(path) => {
                mount_tmpfs(path)?;
                at(
                    "make read-only",
                    path,
                    remount_read_only(path, MountFlags::NOEXEC),
                )?;
                path
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

/// Mounts an empty file system and fills it with a program's needs.
fn populate(stage: &Path, shared: &Path) -> Result<(), JailError> {
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
    let here = stage.join("shared");
    at("create", &here, fs::create_dir(&here))?;
    at("bind", shared, mount_bind_recursive(shared, &here))?;
    seal(&here)?;
    at(
        "make read-only",
        stage,
        remount_read_only(stage, MountFlags::empty()),
    )
}

/// Only the processes, none of the kernel's settings.
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

/// Makes the shared directory itself read-only for the guest, but not what is mounted in it: the host
/// mounts there later, by path, and must find only what it has made.
fn seal(shared: &Path) -> Result<(), JailError> {
    let flags = MountFlags::NODEV | MountFlags::NOEXEC;
    at("make read-only", shared, remount_read_only(shared, flags))
}

/// Binds what is at `host`, without what is mounted below it.
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

/// Makes a mount point the root and lets go of the old one.
fn pivot(root: &Path) -> Result<(), JailError> {
    at("enter", root, rustix::process::chdir(root))?;
    // The old root ends up mounted over the new one (pivot_root(2)), and goes at once.
    at("pivot to", root, rustix::process::pivot_root(c".", c"."))?;
    at(
        "let go of the host's root from",
        root,
        unmount(c".", UnmountFlags::DETACH),
    )?;
    at("enter", root, rustix::process::chdir("/"))
}
