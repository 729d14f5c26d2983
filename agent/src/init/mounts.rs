//! The mounts of config.json.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::plan::{MountPlan, MountSource, fd};
use super::rootfs::Rootfs;
use super::targets::{self, Kind};
use super::{copy_up, guest_devices, inherited};
use crate::sys::{Doing as _, OsError};
use rvm_sys::mount::{AttrChange, attr, change_attributes, map_ids, set_propagation};

/// Files below /proc that a mount may cover: tools such as LXCFS show a container its own resources
/// there. runc's list; other mounts below /proc could defeat what protects the container.
const PROC_EXCEPTIONS: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// File systems whose instances the kernel shares: a flag on the instance would apply to other
/// containers too, or is refused. Only their mounts become read-only.
const SHARED_INSTANCES: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// A mount that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("error mounting {from:?} to rootfs at {destination:?}")]
    Failed {
        from: String,
        destination: String,
        #[source]
        source: OsError,
    },
    /// The mount would hide a part of /proc.
    #[error("{0:?} cannot be mounted because it is inside /proc")]
    InsideProc(String),
}

/// Makes mounts in a root.
pub struct Mounts<'root> {
    root: &'root Rootfs,
    has_cgroup_namespace: bool,
    /// Mounts that become read-only once /dev is populated.
    read_only_later: Vec<OwnedFd>,
}

impl<'root> Mounts<'root> {
    pub fn new(root: &'root Rootfs, has_cgroup_namespace: bool) -> Self {
        Self {
            root,
            has_cgroup_namespace,
            read_only_later: Vec::new(),
        }
    }

    /// Makes a mount and attaches it.
    pub fn make(&mut self, plan: &MountPlan) -> Result<(), MountError> {
        check_proc(plan)?;
        self.make_unchecked(plan)
            .map_err(|source| MountError::Failed {
                from: source_name(&plan.source).to_owned(),
                destination: plan.destination.clone(),
                source,
            })
    }

    fn make_unchecked(&mut self, plan: &MountPlan) -> Result<(), OsError> {
        let mount = match &plan.source {
            MountSource::Existing => {
                let path = &plan.destination;
                let existing = targets::open(self.root.as_fd(), path);
                let existing = existing.doing(|| format!("open {path}"))?;
                return self.set_attributes(&existing, plan);
            }
            MountSource::Bind {
                path,
                recursive,
                prepared,
                may_be_missing,
            } => match bind(path, *recursive, *prepared) {
                Err(error) if *may_be_missing && error.errno == Errno::NOENT => return Ok(()),
                mount => mount?,
            },
            MountSource::Cgroup => self.cgroup(plan)?,
            MountSource::Filesystem {
                kind,
                source,
                data,
                idmap,
                ..
            } => {
                let read_only = plan.attributes.set & attr::RDONLY != 0;
                let mount = match filesystem(kind, source, data, read_only) {
                    // Only the user namespace that owns the network namespace may mount a new
                    // sysfs.
                    Err(OsError {
                        errno: Errno::PERM, ..
                    }) if kind == "sysfs" => bind("/sys", true, None),
                    result => result,
                }?;
                if let Some(index) = idmap {
                    map_ids(mount.as_fd(), inherited(fd::MOUNTS + index).as_fd(), false)
                        .doing(|| "map ids")?;
                }
                mount
            }
        };
        let mode = self.mode_to_keep(plan)?;
        let target = self.target(plan, &mount)?;
        if let MountSource::Filesystem { copy_up: true, .. } = plan.source {
            copy_up::copy(target.as_fd(), mount.as_fd())?;
        }
        if let Some(mode) = mode {
            chmodat(&mount, ".", mode, AtFlags::empty()).doing(|| "set the mode of the tmpfs")?;
        }
        self.set_attributes(&mount, plan)?;
        attach(&mount, &target)?;
        for flags in &plan.propagation {
            let recursive = flags & libc::MS_REC != 0;
            set_propagation(mount.as_fd(), flags & !libc::MS_REC, recursive)
                .doing(|| "set the propagation")?;
        }
        Ok(())
    }

    /// The permissions of a directory that a tmpfs without the option `mode` is mounted on: the
    /// tmpfs gets them, as with runc. One on a directory that rvm makes is open to everybody.
    fn mode_to_keep(&self, plan: &MountPlan) -> Result<Option<Mode>, OsError> {
        match &plan.source {
            MountSource::Filesystem { kind, data, .. }
                if kind == "tmpfs" && data.iter().all(|(key, _)| key != "mode") => {}
            _ => return Ok(None),
        }
        let path = &plan.destination;
        let status = match targets::open(self.root.as_fd(), path) {
            Ok(below) => fstat(below),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => Err(errno),
        };
        let status = status.doing(|| format!("open {path}"))?;
        Ok(Some(Mode::from_raw_mode(status.st_mode & 0o7777)))
    }

    /// Opens the mount point, and makes it if it is missing.
    fn target(&self, plan: &MountPlan, mount: &OwnedFd) -> Result<OwnedFd, OsError> {
        let kind = match targets::is_directory(mount).doing(|| "look at the source")? {
            true => Kind::Directory,
            false => Kind::File,
        };
        let target = targets::open_or_make(self.root.as_fd(), &plan.destination, kind)?;
        match &plan.source {
            // A link of the image at the mount point would move the mount, and masked paths below
            // it would stay visible (CVE-2023-27561).
            MountSource::Filesystem { kind, .. } if kind == "proc" || kind == "sysfs" => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                targets::open_without_links(self.root.as_fd(), &plan.destination, flags)
                    .doing(|| format!("filesystem {kind:?} must be mounted on ordinary directory"))
            }
            _ => Ok(target),
        }
    }

    fn set_attributes(&mut self, mount: &OwnedFd, plan: &MountPlan) -> Result<(), OsError> {
        let mut own = plan.attributes;
        // The device nodes of /dev come later.
        if plan.destination.trim_end_matches('/') == "/dev" && own.set & attr::RDONLY != 0 {
            own.set &= !attr::RDONLY;
            let later = mount.try_clone().doing(|| "keep /dev")?;
            self.read_only_later.push(later);
        }
        if !own.is_empty() {
            change_attributes(mount.as_fd(), own, false).doing(|| "set the mount options")?;
        }
        if !plan.recursive.is_empty() {
            change_attributes(mount.as_fd(), plan.recursive, true)
                .doing(|| "set the recursive mount options")?;
        }
        Ok(())
    }

    /// The cgroup tree, whose root is the container's own group if it has a cgroup namespace.
    fn cgroup(&self, plan: &MountPlan) -> Result<OwnedFd, OsError> {
        let read_only = plan.attributes.set & attr::RDONLY != 0;
        match filesystem("cgroup2", "cgroup", &[], read_only) {
            // A user namespace that does not own the cgroup namespace may not mount a new one.
            Err(OsError {
                errno: Errno::PERM | Errno::BUSY,
                ..
            }) if !self.has_cgroup_namespace => bind("/sys/fs/cgroup", true, None),
            result => result,
        }
    }

    /// Makes /dev read-only, once it is populated.
    pub fn finish(self) -> Result<(), OsError> {
        for mount in &self.read_only_later {
            change_attributes(mount.as_fd(), AttrChange::READ_ONLY, false)
                .doing(|| "make /dev read-only")?;
        }
        Ok(())
    }
}

/// Attaches a detached mount to the file behind a descriptor.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), OsError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).doing(|| "attach the mount")
}

/// A detached mount of a part of the guest's tree.
fn bind(path: &str, recursive: bool, prepared: Option<i32>) -> Result<OwnedFd, OsError> {
    if let Some(index) = prepared {
        return Ok(inherited(fd::MOUNTS + index));
    }
    if path.starts_with(guest_devices::BY_NUMBER) {
        return guest_devices::node(path);
    }
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).doing(|| format!("stat {path}"))
}

/// A detached mount of a new instance of a file system.
pub fn filesystem(
    kind: &str,
    source: &str,
    data: &[(String, Option<String>)],
    read_only: bool,
) -> Result<OwnedFd, OsError> {
    let context =
        fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(|| format!("open file system {kind}"))?;
    fsconfig_set_string(&context, "source", source).doing(|| format!("set source {source}"))?;
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, key, value.as_str())
                .doing(|| format!("set option {key}={value}"))?,
            None => {
                fsconfig_set_flag(&context, key).doing(|| format!("set option {key}"))?;
            }
        }
    }
    if read_only && !SHARED_INSTANCES.contains(&kind) {
        fsconfig_set_flag(&context, "ro").doing(|| "set option ro")?;
    }
    fsconfig_create(&context).doing(|| format!("make an instance of {kind}"))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .doing(|| format!("mount {kind}"))
}

fn check_proc(plan: &MountPlan) -> Result<(), MountError> {
    let path = clean(&plan.destination);
    let is_proc = matches!(&plan.source,
        MountSource::Filesystem { kind, .. } if kind == "proc");
    let allowed = match path.strip_prefix("/proc") {
        Some("") => {
            is_proc
                || matches!(
                    plan.source,
                    MountSource::Bind { .. } | MountSource::Existing
                )
        }
        Some(rest) if rest.starts_with('/') => PROC_EXCEPTIONS.contains(&path.as_str()),
        _ => true,
    };
    if allowed {
        Ok(())
    } else {
        Err(MountError::InsideProc(plan.destination.clone()))
    }
}

/// Removes empty parts, `.` and `..` from a path.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn source_name(source: &MountSource) -> &str {
    match source {
        MountSource::Existing => "",
        MountSource::Bind { path, .. } => path,
        MountSource::Filesystem { source, .. } => source,
        MountSource::Cgroup => "cgroup",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(destination: &str, source: MountSource) -> bool {
        let destination = destination.to_owned();
        check_proc(&MountPlan {
            destination,
            source,
            ..MountPlan::default()
        })
        .is_ok()
    }

    fn fs(kind: &str) -> MountSource {
        MountSource::Filesystem {
            kind: kind.to_owned(),
            source: kind.to_owned(),
            data: Vec::new(),
            copy_up: false,
            idmap: None,
        }
    }

    #[test]
    fn nothing_is_mounted_inside_proc_but_what_tells_of_resources() {
        assert!(verdict("/proc", fs("proc")));
        assert!(!verdict("/proc", fs("tmpfs")));
        assert!(!verdict("/proc/self", fs("tmpfs")));
        assert!(!verdict("/sys/../proc/sys", fs("tmpfs")));
        assert!(verdict("/proc/meminfo", MountSource::default()));
        assert!(verdict("/procfs", fs("tmpfs")));
    }

    #[test]
    fn a_path_is_cleaned() {
        assert_eq!(clean("//a/./b/../c/"), "/a/c");
        assert_eq!(clean("/../.."), "/");
    }
}
