//! Translates a configuration for the guest. Pure: it returns the files that the host must share.
//!
//! The root and the sources of bind mounts become paths in the shared directory, and the cgroup
//! path one of the guest's. Fields that only the host applies are removed.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Spec};
use rvm_protocol::SHARED_DIR;

use super::pod::{Peer, Role, joined_namespaces, own_namespaces};
use super::{Bundle, SpecError, mounts, resources};
use crate::disk::{self, Stack};
use crate::share::{ROOT, SharedMount};

/// The guest's configuration, and the files of the host that it refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// The configuration for the agent.
    pub spec: Spec,
    /// The root first, unless it is on disks, then the bind mounts.
    pub mounts: Vec<SharedMount>,
    /// Volumes to copy into the guest, by number.
    pub volumes: Vec<PathBuf>,
    /// The disks, and the file systems on them.
    pub disks: Stack,
}

/// Translates the bundle's configuration for the container `id`. `peers` are the containers of the
/// sandbox that it joins.
pub fn translate(bundle: &Bundle, id: &str, peers: &[Peer]) -> Result<Translation, SpecError> {
    let mut spec = bundle.spec.clone();
    let place = |name: &str| Path::new(id).join(name);
    let mut mounts = Vec::new();
    let mut disks = bundle.disks.clone();
    let root = match disks.top() {
        Some(top) => disk::place(id, top),
        None => {
            mounts.push(SharedMount {
                recursive: true,
                // It is not made read-only here: the agent creates mount points in it first.
                ..SharedMount::new(bundle.rootfs.clone(), place(ROOT))
            });
            Path::new(SHARED_DIR).join(place(ROOT))
        }
    };
    if let Some(in_spec) = spec.root_mut() {
        in_spec.set_path(root);
    }
    let (shared, volumes) =
        mounts::translate(&mut spec, &bundle.sources, id, &bundle.role, &mut disks);
    mounts.extend(shared);
    let (hooks, programs) = guest_hooks(spec.hooks().as_ref(), id);
    spec.set_hooks(hooks);
    mounts.extend(programs);
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(Path::new("/").join(id)));
        // Both are done on the host.
        linux.set_memory_policy(None);
        linux.set_net_devices(None);
        let list = linux.namespaces().as_deref().unwrap_or_default();
        let namespaces = match &bundle.role {
            Role::Alone | Role::Sandbox => own_namespaces(list),
            Role::Member(_) => {
                joined_namespaces(list, peers).map_err(|error| bundle.field_error(error))?
            }
        };
        linux.set_namespaces(Some(namespaces));
        if let Some(resources) = linux.resources_mut() {
            resources::warn_about_swap(resources);
            resources::for_guest(resources);
        }
    }
    Ok(Translation {
        spec,
        mounts,
        volumes,
        disks,
    })
}

/// The hooks that the guest runs, and the host's programs among them.
fn guest_hooks(hooks: Option<&Hooks>, id: &str) -> (Option<Hooks>, Vec<SharedMount>) {
    let Some(hooks) = hooks else {
        return (None, Vec::new());
    };
    let mut programs = Vec::new();
    let mut create: Vec<Hook> = hooks.create_container().clone().unwrap_or_default();
    for (index, hook) in create.iter_mut().enumerate() {
        let place = Path::new(id).join(format!("hooks/{index}"));
        // Keeps argv[0] when the path changes.
        if hook.args().as_ref().is_none_or(Vec::is_empty) {
            hook.set_args(Some(vec![hook.path().to_string_lossy().into_owned()]));
        }
        programs.push(SharedMount {
            read_only: Some(true),
            ..SharedMount::new(hook.path().clone(), place.clone())
        });
        hook.set_path(Path::new(SHARED_DIR).join(place));
    }
    let start = hooks.start_container().clone().unwrap_or_default();
    let mut kept = Hooks::default();
    kept.set_create_container(Some(create).filter(|list| !list.is_empty()));
    kept.set_start_container(Some(start).filter(|list| !list.is_empty()));
    (Some(kept), programs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxNamespaceType;
    use serde_json::json;

    fn translation(extra: serde_json::Value) -> Translation {
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/" },
            "root": { "path": "rootfs" },
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let bundle = Bundle {
            dir: "/bundle".into(),
            spec: serde_json::from_value(config).unwrap(),
            rootfs: "/bundle/rootfs".into(),
            role: Role::Alone,
            hardware: crate::sizing::Hardware::default(),
            rates: crate::config::rates::RateLimits::default(),
            sources: Vec::new(),
            disks: Stack::default(),
        };
        translate(&bundle, "box", &[]).unwrap()
    }

    #[test]
    fn the_root_is_shared_under_the_containers_id() {
        let translation = translation(json!({}));
        assert_eq!(translation.mounts[0].source, Path::new("/bundle/rootfs"));
        assert_eq!(translation.mounts[0].place, Path::new("box/rootfs"));
        let root = translation.spec.root().clone().unwrap();
        assert_eq!(root.path(), Path::new("/run/rvm/shared/box/rootfs"));
    }

    #[test]
    fn hooks_of_the_guest_keep_their_names_and_the_hosts_programs_are_shared() {
        let translation = translation(json!({ "hooks": {
            "createRuntime": [{ "path": "/bin/true" }],
            "createContainer": [{ "path": "/opt/hook" }],
            "startContainer": [{ "path": "/bin/of-the-image" }],
        } }));
        let hooks = translation.spec.hooks().clone().unwrap();
        assert!(hooks.create_runtime().is_none());
        let create = &hooks.create_container().clone().unwrap()[0];
        assert_eq!(create.path(), Path::new("/run/rvm/shared/box/hooks/0"));
        assert_eq!(create.args().clone().unwrap(), ["/opt/hook"]);
        let start = &hooks.start_container().clone().unwrap()[0];
        assert_eq!(start.path(), Path::new("/bin/of-the-image"));
        let program = &translation.mounts[1];
        assert_eq!(program.source, Path::new("/opt/hook"));
        assert_eq!(program.read_only, Some(true));
    }

    #[test]
    fn the_hosts_cgroups_hooks_and_network_are_removed() {
        let translation = translation(json!({
            "hooks": { "poststop": [{ "path": "/bin/true" }] },
            "linux": {
                "cgroupsPath": "system.slice:docker:abc",
                "namespaces": [{ "type": "pid" }, { "type": "network" }],
            },
        }));
        assert_eq!(translation.spec.hooks(), &Some(Hooks::default()));
        let linux = translation.spec.linux().clone().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/box")));
        let types: Vec<_> = linux
            .namespaces()
            .iter()
            .flatten()
            .map(|n| n.typ())
            .collect();
        assert_eq!(types, [LinuxNamespaceType::Pid]);
    }
}
