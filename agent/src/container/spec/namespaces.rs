//! Which namespaces a container gets new, which it joins, and which it shares with the guest.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::SpecError;
use crate::init::plan::TimeOffset;

/// The namespaces of a container.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// New namespaces that clone3(2) makes, as `CLONE_NEW*`. Not the user namespace, and not the
    /// cgroup namespace, whose root is the group of the process that makes it.
    pub create: u64,
    /// Existing namespaces to be born into.
    pub join: Vec<Join>,
    pub user: UserNamespace,
    /// Whether the process makes a cgroup namespace.
    pub unshare_cgroup: bool,
    /// Whether the process makes a time namespace, for which it first sets the offsets.
    pub unshare_time: bool,
    /// Whether the UTS namespace is not the guest's.
    pub has_uts: bool,
    /// Whether the pid namespace ends with the container's init process.
    pub owns_pid: bool,
}

#[derive(Debug)]
pub struct Join {
    /// `CLONE_NEW*`
    pub flag: u64,
    /// A path of the guest, such as /proc/<pid>/ns/net.
    pub path: PathBuf,
}

/// The user namespace of a container.
#[derive(Debug, Default)]
pub enum UserNamespace {
    #[default]
    Guest,
    /// A new one, with the lines of its uid_map and gid_map: `inside outside count`.
    New {
        uid_map: String,
        gid_map: String,
        /// The uid and gid outside of the container's root, if it is mapped.
        root: Option<(u32, u32)>,
    },
    Join(PathBuf),
}

impl UserNamespace {
    pub fn is_own(&self) -> bool {
        !matches!(self, Self::Guest)
    }
}

/// Reads `linux.namespaces` and the id mappings.
pub fn translate(linux: &Linux) -> Result<Namespaces, SpecError> {
    let mut namespaces = Namespaces::default();
    let mut seen = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        if seen.contains(&kind) {
            return Err(SpecError::invalid(
                "linux.namespaces",
                format!("has {kind} twice"),
            ));
        }
        seen.push(kind);
        let path = namespace
            .path()
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        add(&mut namespaces, linux, kind, path)?;
    }
    if !seen.contains(&LinuxNamespaceType::Mount) {
        return Err(SpecError::unsupported(
            "linux.namespaces without a mount namespace",
        ));
    }
    let has_mappings = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|m| !m.is_empty());
    if !namespaces.user.is_own()
        && (has_mappings(linux.uid_mappings()) || has_mappings(linux.gid_mappings()))
    {
        return Err(SpecError::invalid(
            "linux.uidMappings",
            "need a user namespace",
        ));
    }
    Ok(namespaces)
}

fn add(
    namespaces: &mut Namespaces,
    linux: &Linux,
    kind: LinuxNamespaceType,
    path: Option<PathBuf>,
) -> Result<(), SpecError> {
    let flag = flag(kind);
    match (kind, path) {
        (LinuxNamespaceType::User, None) => namespaces.user = new_user_namespace(linux)?,
        (LinuxNamespaceType::User, Some(path)) => namespaces.user = UserNamespace::Join(path),
        // The init process sets the root up in a new mount namespace.
        (LinuxNamespaceType::Mount, Some(_)) => {
            return Err(SpecError::unsupported(
                "linux.namespaces with a path for mount",
            ));
        }
        (LinuxNamespaceType::Cgroup, None) => namespaces.unshare_cgroup = true,
        (LinuxNamespaceType::Time, None) => namespaces.unshare_time = true,
        (_, Some(path)) => namespaces.join.push(Join { flag, path }),
        (_, None) => {
            namespaces.create |= flag;
            namespaces.owns_pid |= kind == LinuxNamespaceType::Pid;
        }
    }
    namespaces.has_uts |= kind == LinuxNamespaceType::Uts;
    Ok(())
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    // The enumeration's values are the kernel's.
    kind as u64
}

fn new_user_namespace(linux: &Linux) -> Result<UserNamespace, SpecError> {
    let (uids, uid_map) = id_map("linux.uidMappings", linux.uid_mappings().as_deref())?;
    let (gids, gid_map) = id_map("linux.gidMappings", linux.gid_mappings().as_deref())?;
    let root = outside(uids, 0).zip(outside(gids, 0));
    Ok(UserNamespace::New {
        uid_map,
        gid_map,
        root,
    })
}

/// The lines of a uid_map or gid_map.
pub(super) fn id_map<'map>(
    field: &str,
    mappings: Option<&'map [LinuxIdMapping]>,
) -> Result<(&'map [LinuxIdMapping], String), SpecError> {
    let mappings = mappings.unwrap_or_default();
    if mappings.is_empty() {
        return Err(SpecError::invalid(
            field,
            "is empty, which a user namespace needs",
        ));
    }
    let line = |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
    Ok((mappings, mappings.iter().map(line).collect()))
}

/// The id outside of an id of the container.
pub(super) fn outside(mappings: &[LinuxIdMapping], id: u32) -> Option<u32> {
    mappings
        .iter()
        .find(|m| {
            id.checked_sub(m.container_id())
                .is_some_and(|offset| offset < m.size())
        })
        .and_then(|m| m.host_id().checked_add(id - m.container_id()))
}

/// The offsets of a new time namespace, or `None` if there is no such namespace to make.
pub fn time_offsets(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<Option<Vec<TimeOffset>>, SpecError> {
    let offsets = linux
        .time_offsets()
        .as_ref()
        .filter(|offsets| !offsets.is_empty());
    if !namespaces.unshare_time {
        return match offsets {
            Some(_) => Err(SpecError::invalid(
                "linux.timeOffsets",
                "need a new time namespace",
            )),
            None => Ok(None),
        };
    }
    let mut lines = Vec::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        let clock = match clock.as_str() {
            "monotonic" => libc::CLOCK_MONOTONIC,
            "boottime" => libc::CLOCK_BOOTTIME,
            other => {
                let problem = format!("has {other:?}, which is no clock of a time namespace");
                return Err(SpecError::invalid("linux.timeOffsets", problem));
            }
        };
        lines.push((
            clock,
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0),
        ));
    }
    Ok(Some(lines))
}
