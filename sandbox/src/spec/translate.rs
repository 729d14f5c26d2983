//! The configuration as the guest must see it. Pure: what the translation asks of the host comes
//! out as a list.
//!
//! Everything that names something of the host is replaced: the root and the sources of bind mounts
//! by their places in the shared directory, the cgroup path by one of the guest's own. What only
//! the host acts on is taken out.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Mount, Spec};
use rvm_protocol::SHARED_DIR;

use super::pod::{Peer, Role, joined_namespaces, own_namespaces};
use super::{Bundle, SpecError};
use crate::storage::{ROOT, VOLUMES};

/// A directory or file of the host that the guest must be able to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it goes, below the shared directory.
    pub place: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The guest may not change it, whatever it does.
    pub read_only: bool,
    /// What the host mounts below the source later appears too.
    pub follows_host: bool,
}

/// What the guest is told, and what it will look for.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// The configuration for the agent.
    pub spec: Spec,
    /// The root first, then the bind mounts.
    pub mounts: Vec<SharedMount>,
}

/// Whether a mount makes a part of the host's file system visible.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, &["bind", "rbind"])
}

fn has_option(mount: &Mount, names: &[&str]) -> bool {
    mount
        .options()
        .iter()
        .flatten()
        .any(|option| names.contains(&option.as_str()))
}

/// Translates the bundle's configuration for the container `id`, which makes a sandbox of its own or
/// joins one that has these containers.
pub fn translate(bundle: &Bundle, id: &str, peers: &[Peer]) -> Result<Translation, SpecError> {
    let mut spec = bundle.spec.clone();
    let place = |name: &str| Path::new(id).join(name);
    let mut mounts = vec![SharedMount {
        source: bundle.rootfs.clone(),
        place: place(ROOT),
        recursive: true,
        // The agent makes mount points in it first.
        read_only: false,
        follows_host: false,
    }];
    if let Some(root) = spec.root_mut() {
        root.set_path(Path::new(SHARED_DIR).join(place(ROOT)));
    }
    let binds = spec
        .mounts_mut()
        .iter_mut()
        .flatten()
        .filter(|mount| is_bind(mount));
    for (index, mount) in binds.enumerate() {
        let place = place(VOLUMES).join(index.to_string());
        let guest_source = Path::new(SHARED_DIR).join(&place);
        // Checked to be there when the configuration was.
        let source = mount.source().clone().unwrap_or_default();
        mounts.push(SharedMount {
            source: bundle.dir.join(source),
            place,
            recursive: has_option(mount, &["rbind"]),
            read_only: has_option(mount, &["ro", "rro"]),
            follows_host: has_option(mount, &["slave", "rslave", "shared", "rshared"]),
        });
        mount.set_source(Some(guest_source));
    }
    let (hooks, programs) = guest_hooks(spec.hooks().as_ref(), id);
    spec.set_hooks(hooks);
    mounts.extend(programs);
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(Path::new("/").join(id)));
        let list = linux.namespaces().as_deref().unwrap_or_default();
        let namespaces = match &bundle.role {
            Role::Alone | Role::Sandbox => own_namespaces(list),
            Role::Member(_) => {
                joined_namespaces(list, peers).map_err(|problem| bundle.problem(problem))?
            }
        };
        linux.set_namespaces(Some(namespaces));
    }
    Ok(Translation { spec, mounts })
}

/// The hooks that the guest runs, and the programs of the host among them.
fn guest_hooks(hooks: Option<&Hooks>, id: &str) -> (Option<Hooks>, Vec<SharedMount>) {
    let Some(hooks) = hooks else {
        return (None, Vec::new());
    };
    let mut programs = Vec::new();
    let mut create: Vec<Hook> = hooks.create_container().clone().unwrap_or_default();
    for (index, hook) in create.iter_mut().enumerate() {
        let place = Path::new(id).join(format!("hooks/{index}"));
        // A program finds its name in its arguments, wherever it lies.
        if hook.args().as_ref().is_none_or(Vec::is_empty) {
            hook.set_args(Some(vec![hook.path().to_string_lossy().into_owned()]));
        }
        programs.push(SharedMount {
            source: hook.path().clone(),
            place: place.clone(),
            recursive: false,
            read_only: true,
            follows_host: false,
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
    fn only_bind_mounts_are_shared() {
        let translation = translation(json!({ "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["ro"] },
            { "destination": "/work", "type": "none", "source": "work", "options": ["rbind", "rslave"] },
        ] }));
        let [_, data, work] = &translation.mounts[..] else {
            panic!()
        };
        assert_eq!(data.source, Path::new("/srv/data"));
        assert!(data.read_only && !data.recursive && !data.follows_host);
        assert_eq!(
            work.source,
            Path::new("/bundle/work"),
            "relative to the bundle"
        );
        assert!(!work.read_only && work.recursive && work.follows_host);
        let sources: Vec<_> = translation
            .spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| mount.source().clone().unwrap())
            .collect();
        assert_eq!(sources[0], Path::new("proc"));
        assert_eq!(sources[2], Path::new("/run/rvm/shared/box/mounts/1"));
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
        assert!(program.read_only);
    }

    #[test]
    fn nothing_of_the_hosts_cgroups_hooks_and_network_is_left() {
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
