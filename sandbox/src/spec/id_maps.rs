//! The id maps of mounts.

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};

use super::mounts::has_option;
use crate::host::idmap::IdMap;

/// The id map of a mount: its own, or with the option `idmap` that of the container's user
/// namespace.
pub(super) fn id_map(mount: &Mount, container: &IdMappings) -> Option<IdMap> {
    let own = IdMappings {
        uids: mount.uid_mappings().clone().unwrap_or_default(),
        gids: mount.gid_mappings().clone().unwrap_or_default(),
    };
    let maps = match own.is_empty() {
        true if has_option(mount, &["idmap", "ridmap"]) => container,
        true => return None,
        false => &own,
    };
    let lines = |list: &[LinuxIdMapping]| -> String {
        let line =
            |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
        list.iter().map(line).collect()
    };
    Some(IdMap {
        uids: lines(&maps.uids),
        gids: lines(&maps.gids),
        recursive: has_option(mount, &["ridmap"]),
    })
}

pub(super) struct IdMappings {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl IdMappings {
    pub(super) fn of_container(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        Self {
            uids: linux
                .and_then(|linux| linux.uid_mappings().clone())
                .unwrap_or_default(),
            gids: linux
                .and_then(|linux| linux.gid_mappings().clone())
                .unwrap_or_default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// Fails with the reason if a mount's id map is incomplete.
pub(super) fn check_id_map(mount: &Mount, spec: &Spec) -> Result<(), &'static str> {
    let own = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let (uids, gids) = (own(mount.uid_mappings()), own(mount.gid_mappings()));
    if uids != gids {
        return Err("has only one of uidMappings and gidMappings");
    }
    let has_idmap = has_option(mount, &["idmap", "ridmap"]);
    let container = IdMappings::of_container(spec);
    if has_idmap && !uids && (container.uids.is_empty() || container.gids.is_empty()) {
        return Err("asks for mapped ids without saying how");
    }
    Ok(())
}
