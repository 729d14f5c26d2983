//! The mounts of a configuration as the guest is to make them. Pure.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use rvm_protocol::SHARED_DIR;

use super::sources::Source;
use super::translate::SharedMount;
use crate::storage::VOLUMES;

/// Whether a mount makes a part of the host's file system visible.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, &["bind", "rbind"])
}

fn has_option(mount: &Mount, names: &[&str]) -> bool {
    options(mount).any(|option| names.contains(&option))
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    let list = mount.options().iter().flatten();
    list.flat_map(|option| option.split(','))
}

/// Replaces what names something of the host, in the mounts of the container `id`; `sources` says what
/// that is. Returns what the guest must see of the host.
pub fn translate(spec: &mut Spec, sources: &[Option<Source>], id: &str) -> Vec<SharedMount> {
    let mut shared = Vec::new();
    let mut wants_cgroups = false;
    let mounts = spec.mounts_mut().take();
    let has_mounts = mounts.is_some();
    let mut kept = Vec::new();
    let nothing = std::iter::repeat(&None);
    for (mut mount, source) in mounts
        .into_iter()
        .flatten()
        .zip(sources.iter().chain(nothing))
    {
        match source {
            None => {}
            Some(Source::Files(path)) => {
                if has_option(&mount, &["shared", "rshared"]) {
                    let at = mount.destination().display();
                    tracing::warn!("what a container mounts below {at} is not seen by the host");
                }
                let place = Path::new(id).join(VOLUMES).join(shared.len().to_string());
                mount.set_source(Some(Path::new(SHARED_DIR).join(&place)));
                shared.push(SharedMount {
                    source: path.clone(),
                    place,
                    recursive: has_option(&mount, &["rbind"]),
                    read_only: has_option(&mount, &["ro", "rro"]),
                    follows_host: has_option(&mount, &["slave", "rslave", "shared", "rshared"]),
                });
            }
            Some(Source::Device(path) | Source::Kernel(path)) => {
                _ = mount.set_source(Some(path.clone()))
            }
            Some(Source::Cgroups) => replace(&mut mount, "cgroup", &[]),
            Some(Source::CgroupsOfVersionOne) => {
                wants_cgroups = true;
                continue;
            }
            Some(Source::SharedMemory(bytes)) => {
                replace(
                    &mut mount,
                    "tmpfs",
                    &["mode=1777".to_owned(), format!("size={bytes}")],
                );
            }
        }
        kept.push(mount);
    }
    if wants_cgroups {
        open_cgroups(&mut kept);
    }
    spec.set_mounts(has_mounts.then_some(kept));
    shared
}

/// Makes a mount of a file system of a bind mount.
fn replace(mount: &mut Mount, kind: &str, more: &[String]) {
    let keep = |option: &&str| !["bind", "rbind"].contains(option);
    let mut kept: Vec<String> = options(mount).filter(keep).map(str::to_owned).collect();
    kept.extend_from_slice(more);
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(kind.into()));
    mount.set_options(Some(kept));
}

/// A container that gets a hierarchy of version 1 to write to manages control groups: in the guest it
/// does so in the one tree of version 2.
fn open_cgroups(mounts: &mut [Mount]) {
    let is_tree = |mount: &&mut Mount| mount.typ().as_deref() == Some("cgroup");
    for mount in mounts.iter_mut().filter(is_tree) {
        let keep = |option: &&str| *option != "ro";
        let kept = options(mount).filter(keep).map(str::to_owned).collect();
        mount.set_options(Some(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn translated(mounts: Value, sources: &[Option<Source>]) -> (Value, Vec<SharedMount>) {
        let config = json!({ "ociVersion": "1.2.0", "mounts": mounts });
        let mut spec: Spec = serde_json::from_value(config).unwrap();
        let shared = translate(&mut spec, sources, "box");
        (serde_json::to_value(&spec).unwrap(), shared)
    }

    #[test]
    fn options_say_how_files_are_shared() {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["ro"] },
            { "destination": "/work", "type": "none", "source": "work", "options": ["rbind,rslave"] },
        ]);
        let files = |path: &str| Some(Source::Files(path.into()));
        let sources = [None, files("/srv/data"), files("/bundle/work")];
        let (spec, shared) = translated(mounts, &sources);
        let [data, work] = &shared[..] else { panic!() };
        assert_eq!(data.source, Path::new("/srv/data"));
        assert!(data.read_only && !data.recursive && !data.follows_host);
        assert!(!work.read_only && work.recursive && work.follows_host);
        assert_eq!(spec["mounts"][0]["source"], "proc");
        assert_eq!(spec["mounts"][2]["source"], "/run/rvm/shared/box/mounts/1");
    }

    #[test]
    fn a_bound_device_is_the_guests() {
        let mounts = json!([{ "destination": "/x", "type": "bind", "source": "/dev/fuse",
            "options": ["rbind", "nosuid"] }]);
        let source = Source::Device("/sys/dev/char/10:229".into());
        let (spec, shared) = translated(mounts, &[Some(source)]);
        assert!(shared.is_empty());
        assert_eq!(spec["mounts"][0]["source"], "/sys/dev/char/10:229");
        assert_eq!(spec["mounts"][0]["options"], json!(["rbind", "nosuid"]));
    }

    #[test]
    fn the_hosts_control_groups_become_the_guests() {
        let mounts = json!([
            { "destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup",
              "options": ["rbind", "ro"] },
        ]);
        let (spec, _) = translated(mounts, &[Some(Source::Cgroups)]);
        let mount = &spec["mounts"][0];
        assert_eq!(
            (&mount["type"], &mount["options"]),
            (&json!("cgroup"), &json!(["ro"]))
        );
    }

    #[test]
    fn a_hierarchy_of_version_one_opens_the_tree_of_version_two() {
        let mounts = json!([
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "ro"] },
            { "destination": "/sys/fs/cgroup/systemd", "type": "bind",
              "source": "/sys/fs/cgroup/systemd" },
        ]);
        let (spec, shared) = translated(mounts, &[None, Some(Source::CgroupsOfVersionOne)]);
        assert!(shared.is_empty());
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["mounts"][0]["options"], json!(["nosuid"]));
    }

    #[test]
    fn an_engines_memory_is_a_tmpfs_of_the_same_size() {
        let mounts = json!([{ "destination": "/dev/shm", "type": "bind", "source": "/x/shm",
            "options": ["bind", "nosuid", "rprivate"] }]);
        let (spec, shared) = translated(mounts, &[Some(Source::SharedMemory(65536))]);
        assert!(shared.is_empty());
        assert_eq!(spec["mounts"][0]["type"], "tmpfs");
        assert_eq!(
            spec["mounts"][0]["options"],
            json!(["nosuid", "rprivate", "mode=1777", "size=65536"])
        );
    }
}
