//! Translates `mounts`.

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};

use super::{SpecError, namespaces, path_text};
use crate::container::mount_options::{self, MountOptions};
use crate::init::plan::{ContainerPlan, MountPlan, MountSource};

/// The option of mount(8) with which a missing source is no error.
const NO_FAIL: &str = "nofail";

/// The maps of a user namespace for a mount, as lines of `inside outside count`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub uid_map: String,
    pub gid_map: String,
    /// For a bind mount: the agent prepares it, because a container's own user namespace has no
    /// rights on the guest's mounts.
    pub bind: Option<BindMap>,
}

/// A bind mount whose ids are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMap {
    /// The source in the guest.
    pub path: String,
    /// Whether the mounts below are bound too.
    pub recursive: bool,
    /// Whether the ids of the mounts below are mapped too.
    pub map_recursive: bool,
}

/// Adds the mounts to the plan and returns the id maps they need.
pub fn translate(
    mounts: Option<&[Mount]>,
    linux: &Linux,
    plan: &mut ContainerPlan,
) -> Result<Vec<IdMap>, SpecError> {
    let mut idmaps = Vec::new();
    for (index, mount) in mounts.unwrap_or_default().iter().enumerate() {
        let field = format!("mounts[{index}]");
        let translated = translate_one(&field, mount, linux, &mut idmaps)?;
        plan.mounts.push(translated);
    }
    let is_bound_dev = |mount: &MountPlan| {
        matches!(mount.source, MountSource::Bind { .. })
            && mount.destination.trim_end_matches('/') == "/dev"
    };
    plan.populate_dev = !plan.mounts.iter().any(is_bound_dev);
    Ok(idmaps)
}

fn translate_one(
    field: &str,
    mount: &Mount,
    linux: &Linux,
    idmaps: &mut Vec<IdMap>,
) -> Result<MountPlan, SpecError> {
    let destination = path_text(&format!("{field}.destination"), mount.destination())?;
    let options = mount_options::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let source = if options.remount {
        MountSource::Existing
    } else if kind == "bind" || options.bind.is_some() {
        bind(field, mount, &options, linux, idmaps)?
    } else if kind == "cgroup" || kind == "cgroup2" {
        MountSource::Cgroup
    } else {
        filesystem(field, kind, mount, &options, linux, idmaps)?
    };
    Ok(MountPlan {
        // As with runc, a relative destination starts at the root.
        destination: format!("/{}", destination.trim_start_matches('/')),
        source,
        attributes: options.attributes,
        recursive: options.recursive,
        propagation: options.propagation,
    })
}

fn bind(
    field: &str,
    mount: &Mount,
    options: &MountOptions,
    linux: &Linux,
    idmaps: &mut Vec<IdMap>,
) -> Result<MountSource, SpecError> {
    let source = mount.source().as_ref();
    let source =
        source.ok_or_else(|| SpecError::invalid(format!("{field}.source"), "is missing"))?;
    let path = path_text(&format!("{field}.source"), source)?;
    if !path.starts_with('/') {
        return Err(SpecError::invalid(
            format!("{field}.source"),
            "is not an absolute path",
        ));
    }
    let recursive = options.bind.unwrap_or(false);
    let prepared = match id_map(field, mount, options, linux)? {
        None => None,
        Some((uid_map, gid_map)) => {
            let map_recursive = options.idmap == Some(true);
            let bind = Some(BindMap {
                path: path.clone(),
                recursive,
                map_recursive,
            });
            idmaps.push(IdMap {
                uid_map,
                gid_map,
                bind,
            });
            Some(idmaps.len() as i32 - 1)
        }
    };
    // Other options for a file system are ignored, as by the kernel.
    Ok(MountSource::Bind {
        path,
        recursive,
        prepared,
        may_be_missing: options.data.iter().any(|(key, _)| key == NO_FAIL),
    })
}

fn filesystem(
    field: &str,
    kind: &str,
    mount: &Mount,
    options: &MountOptions,
    linux: &Linux,
    idmaps: &mut Vec<IdMap>,
) -> Result<MountSource, SpecError> {
    if kind.is_empty() || kind == "none" {
        return Err(SpecError::invalid(format!("{field}.type"), "is missing"));
    }
    if options.copy_up && kind != "tmpfs" {
        return Err(SpecError::invalid(
            field,
            "has tmpcopyup, which only tmpfs takes",
        ));
    }
    let idmap = match id_map(field, mount, options, linux)? {
        None => None,
        Some((uid_map, gid_map)) => {
            idmaps.push(IdMap {
                uid_map,
                gid_map,
                bind: None,
            });
            Some(idmaps.len() as i32 - 1)
        }
    };
    let source = match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => {
            path_text(&format!("{field}.source"), source)?
        }
        _ => kind.to_owned(),
    };
    let flags = options
        .superblock
        .iter()
        .map(|flag| ((*flag).to_owned(), None));
    // Labels of SELinux, which the guest's kernel does not have.
    let labels = ["context", "fscontext", "defcontext", "rootcontext"];
    let data = options
        .data
        .iter()
        .filter(|(key, _)| !labels.contains(&key.as_str()))
        .cloned();
    Ok(MountSource::Filesystem {
        kind: kind.to_owned(),
        source,
        data: flags.chain(data).collect(),
        copy_up: options.copy_up,
        idmap,
    })
}

/// The id maps of a mount: its own, or with the `idmap` option those of the container.
fn id_map(
    field: &str,
    mount: &Mount,
    options: &MountOptions,
    linux: &Linux,
) -> Result<Option<(String, String)>, SpecError> {
    let present = |maps: &Option<Vec<LinuxIdMapping>>| maps.as_ref().is_some_and(|m| !m.is_empty());
    let own = present(mount.uid_mappings()) || present(mount.gid_mappings());
    if !own && options.idmap.is_none() {
        return Ok(None);
    }
    let (uids, gids) = if own {
        (mount.uid_mappings(), mount.gid_mappings())
    } else {
        (linux.uid_mappings(), linux.gid_mappings())
    };
    let (_, uid_map) = namespaces::id_map(&format!("{field}.uidMappings"), uids.as_deref())?;
    let (_, gid_map) = namespaces::id_map(&format!("{field}.gidMappings"), gids.as_deref())?;
    Ok(Some((uid_map, gid_map)))
}
