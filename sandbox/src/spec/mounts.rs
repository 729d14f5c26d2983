//! Translates config.json's mounts for the guest. Pure.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rvm_protocol::{SHARED_DIR, VOLUMES_DIR};

use super::disks;
use super::id_maps::{IdMappings, id_map};
use super::pod::Role;
use super::sources::Source;
use crate::disk::Stack;
use crate::host::mount_table::BoundMount;
use crate::share::{self, SharedMount, VOLUMES};

/// Options of a mount itself; the kernel shows those of the host's by the same names.
const ATTRIBUTES: [&str; 18] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "nosymfollow",
    "symfollow",
];

const PROPAGATIONS: [&str; 4] = ["shared", "slave", "private", "unbindable"];

/// The agent skips a mount with this option whose source is missing: the host may unmount what is
/// below a volume at any time.
const NO_FAIL: &str = "nofail";

/// Whether a mount is a bind mount.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, &["bind", "rbind"])
}

/// Whether the container may not write to a mount.
pub fn is_read_only(mount: &Mount) -> bool {
    let all = last_of(mount, "rro", "rrw");
    all.or(last_of(mount, "ro", "rw")).unwrap_or(false)
}

/// Whether it is one of those that [`translate`] adds for what is mounted below a volume.
pub(crate) fn is_below(mount: &Mount) -> bool {
    has_option(mount, &[NO_FAIL])
}

/// Whether the owners of a mount's files are mapped.
pub fn maps_ids(mount: &Mount) -> bool {
    has_option(mount, &["idmap", "ridmap"]) || mount.uid_mappings().is_some()
}

pub(super) fn has_option(mount: &Mount, names: &[&str]) -> bool {
    options(mount).any(|option| names.contains(&option))
}

/// Whether the last of an option and its opposite is the option; None if neither is there.
pub(super) fn last_of(mount: &Mount, option: &str, opposite: &str) -> Option<bool> {
    let either = options(mount).filter(|other| [option, opposite].contains(other));
    either.last().map(|last| last == option)
}

pub(super) fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    let list = mount.options().iter().flatten();
    list.flat_map(|option| option.split(','))
}

/// Replaces the host's paths in the mounts of the container `id`, whose bind mounts have these
/// `sources`. Returns the files to share with the guest, and the volumes to copy into it.
pub fn translate(
    spec: &mut Spec,
    sources: &[Option<Source>],
    id: &str,
    role: &Role,
    disks: &mut Stack,
) -> (Vec<SharedMount>, Vec<PathBuf>) {
    let (mut shared, mut volumes, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let mut has_v1_hierarchy = false;
    let maps = IdMappings::of_container(spec);
    let mounts = spec.mounts_mut().take();
    let has_mounts = mounts.is_some();
    let nothing = std::iter::repeat(&None);
    let mounts = mounts.into_iter().flatten();
    for (mut mount, source) in mounts.zip(sources.iter().chain(nothing)) {
        let place = || Path::new(id).join(VOLUMES).join(shared.len().to_string());
        match source {
            None => {}
            Some(Source::Files { path, mounts }) => {
                let mut files = share(&mut mount, path, place(), &maps);
                if let Role::Member(_) = role {
                    share::share_in_pod(&mut files, id);
                }
                kept.extend(bound_mounts(mount, &files, mounts));
                shared.push(files);
                continue;
            }
            Some(Source::Overlay(options)) => {
                let files = share_overlay(&mut mount, options, place());
                kept.extend(bound_mounts(mount, &files, &[]));
                shared.push(files);
                continue;
            }
            Some(Source::Volume(path)) => {
                let copy = Path::new(VOLUMES_DIR).join(id);
                _ = mount.set_source(Some(copy.join(volumes.len().to_string())));
                volumes.push(path.clone());
            }
            Some(Source::Disk(path)) => disks::mount(&mut mount, path, id, disks),
            Some(Source::Device(path) | Source::Kernel(path)) => {
                _ = mount.set_source(Some(path.clone()))
            }
            Some(Source::Cgroups) => replace(&mut mount, "cgroup", &[]),
            Some(Source::CgroupV1) => {
                has_v1_hierarchy = true;
                continue;
            }
            Some(Source::SharedMemory(bytes)) => {
                let size = format!("size={bytes}");
                replace(&mut mount, "tmpfs", &["mode=1777".to_owned(), size]);
            }
        }
        kept.push(mount);
    }
    if has_v1_hierarchy {
        make_cgroups_writable(&mut kept);
    }
    spec.set_mounts(has_mounts.then_some(kept));
    (shared, volumes)
}

/// Shares a mount's files with the guest, and takes out the options that the host applies.
fn share(mount: &mut Mount, path: &Path, place: PathBuf, maps: &IdMappings) -> SharedMount {
    if has_option(mount, &["shared", "rshared"]) {
        let at = mount.destination().display();
        tracing::warn!("what a container mounts below {at} is not seen by the host");
    }
    let shared = SharedMount {
        recursive: has_option(mount, &["rbind"]),
        read_only: last_of(mount, "ro", "rw"),
        all_read_only: last_of(mount, "rro", "rrw"),
        follows_host: has_option(mount, &["slave", "rslave", "shared", "rshared"]),
        idmap: id_map(mount, maps),
        ..SharedMount::new(path.to_owned(), place)
    };
    if shared.idmap.is_some() {
        let keep = |option: &&str| !["idmap", "ridmap"].contains(option);
        let kept = texts(options(mount).filter(keep));
        mount.set_options(Some(kept));
        mount.set_uid_mappings(None);
        mount.set_gid_mappings(None);
    }
    shared
}

/// Shares an overlay, and turns its mount into one of these files.
fn share_overlay(mount: &mut Mount, file_system: &str, place: PathBuf) -> SharedMount {
    let name = mount.source().clone().unwrap_or_else(|| "overlay".into());
    let of_mount = texts(options(mount).filter(is_of_mount));
    mount.set_typ(Some("bind".to_owned()));
    mount.set_options(Some(of_mount));
    SharedMount {
        overlay: Some(file_system.to_owned()),
        read_only: last_of(mount, "ro", "rw"),
        all_read_only: last_of(mount, "rro", "rrw"),
        ..SharedMount::new(name, place)
    }
}

/// The mounts that the guest makes for a volume of these files: one for each of the host's. So an
/// option applies to the volume's top alone, or with `r` before it to all; a file server shows the
/// guest a single file system. As with runc, the top keeps the options that it has on the host if
/// the configuration has none for it, and the others keep theirs.
fn bound_mounts(mut volume: Mount, files: &SharedMount, mounts: &[BoundMount]) -> Vec<Mount> {
    let place = Path::new(SHARED_DIR).join(&files.place);
    let (top, below): (Vec<_>, Vec<_>) = mounts.iter().partition(|bound| bound.is_top());
    let below = match has_option(&volume, &["rbind"]) {
        true => below,
        false => Vec::new(),
    };
    let of_all: Vec<&str> = options(&volume).filter(is_of_all).collect();
    let make = |bound: &BoundMount| {
        let mut mount = volume.clone();
        let own = ["bind", NO_FAIL].into_iter().chain(of_host(bound));
        mount.set_destination(volume.destination().join(&bound.below));
        mount.set_options(Some(texts(own.chain(of_all.iter().copied()))));
        _ = mount.set_source(Some(place.join(&bound.below)));
        mount
    };
    let below: Vec<Mount> = below.into_iter().map(make).collect();
    let has_own = options(&volume).any(|option| ATTRIBUTES.contains(&option));
    let of_top = top.into_iter().filter(|_| !has_own).flat_map(of_host);
    let own = options(&volume).filter(|option| ![NO_FAIL, "bind", "rbind"].contains(option));
    let own = texts(["bind"].into_iter().chain(of_top).chain(own));
    volume.set_options(Some(own));
    _ = volume.set_source(Some(place));
    [vec![volume], below].concat()
}

pub(super) fn texts<'a>(options: impl Iterator<Item = &'a str>) -> Vec<String> {
    options.map(str::to_owned).collect()
}

/// The options of a mount of the host that the guest repeats.
fn of_host(mount: &BoundMount) -> impl Iterator<Item = &str> {
    let all = mount.options.iter().map(String::as_str);
    all.filter(|option| ATTRIBUTES.contains(option))
}

/// Whether an option is one of a mount, and not of its file system.
pub(super) fn is_of_mount(option: &&str) -> bool {
    ATTRIBUTES.contains(option) || PROPAGATIONS.contains(option) || is_of_all(option)
}

/// Whether an option is for a mount and all below it.
fn is_of_all(option: &&str) -> bool {
    let of_all = option.strip_prefix('r');
    of_all.is_some_and(|one| ATTRIBUTES.contains(&one) || PROPAGATIONS.contains(&one))
}

/// Replaces a bind mount by a mount of a file system of type `kind`.
fn replace(mount: &mut Mount, kind: &str, more: &[String]) {
    let keep = |option: &&str| !["bind", "rbind"].contains(option);
    let mut kept: Vec<String> = options(mount).filter(keep).map(str::to_owned).collect();
    kept.extend_from_slice(more);
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(kind.into()));
    mount.set_options(Some(kept));
}

/// A container with a bind mount of a version 1 hierarchy manages control groups. The guest has
/// only version 2, so its hierarchy becomes writable instead.
fn make_cgroups_writable(mounts: &mut [Mount]) {
    let is_cgroup = |mount: &&mut Mount| mount.typ().as_deref() == Some("cgroup");
    for mount in mounts.iter_mut().filter(is_cgroup) {
        let keep = |option: &&str| *option != "ro";
        let kept = options(mount).filter(keep).map(str::to_owned).collect();
        mount.set_options(Some(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::idmap::IdMap;
    use serde_json::{Value, json};

    fn translated(mounts: Value, sources: &[Option<Source>]) -> (Value, Vec<SharedMount>) {
        let config = json!({ "ociVersion": "1.2.0", "mounts": mounts });
        let mut spec: Spec = serde_json::from_value(config).unwrap();
        let disks = &mut Stack::default();
        let (shared, _) = translate(&mut spec, sources, "box", &Role::Alone, disks);
        (serde_json::to_value(&spec).unwrap(), shared)
    }

    fn files(path: &str, mounts: &[(&str, &str)]) -> Source {
        let bound = |(below, options): &(&str, &str)| BoundMount {
            below: below.into(),
            options: texts(options.split(',')),
        };
        Source::Files {
            path: path.into(),
            mounts: mounts.iter().map(bound).collect(),
        }
    }

    #[test]
    fn options_say_how_files_are_shared() {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["ro"] },
            { "destination": "/work", "type": "none", "source": "work", "options": ["rbind,rslave"] },
        ]);
        let files = |path: &str| Some(files(path, &[]));
        let sources = [None, files("/srv/data"), files("/bundle/work")];
        let (spec, shared) = translated(mounts, &sources);
        let [data, work] = &shared[..] else { panic!() };
        assert_eq!(data.source, Path::new("/srv/data"));
        assert!(!data.recursive && !data.follows_host);
        assert_eq!((data.read_only, data.all_read_only), (Some(true), None));
        assert!(work.recursive && work.follows_host);
        assert_eq!((work.read_only, work.all_read_only), (None, None));
        assert_eq!(spec["mounts"][0]["source"], "proc");
        assert_eq!(spec["mounts"][2]["source"], "/run/rvm/shared/box/mounts/1");
    }

    #[test]
    fn the_last_of_two_options_says_whether_files_can_be_written() {
        for (options, top, all, is_read_only) in [
            (json!(["ro", "rw"]), Some(false), None, false),
            (json!(["rw,ro"]), Some(true), None, true),
            (json!(["rro", "rw"]), Some(false), Some(true), true),
            (json!(["ro", "rro", "rrw"]), Some(true), Some(false), false),
            (json!([]), None, None, false),
        ] {
            let mount = json!({ "destination": "/a", "type": "bind", "source": "/a",
                                "options": options });
            let (_, shared) = translated(json!([mount]), &[Some(files("/a", &[]))]);
            let found = (shared[0].read_only, shared[0].all_read_only);
            assert_eq!(found, (top, all), "{options}");
            let mount = serde_json::from_value(mount).unwrap();
            assert_eq!(super::is_read_only(&mount), is_read_only, "{options}");
        }
    }

    #[test]
    fn each_mount_of_the_host_in_a_volume_is_one_in_the_guest_with_its_own_options() {
        let source = files(
            "/v",
            &[
                ("", "rw,nosuid,idmapped"),
                ("a", "ro"),
                ("a/b", "rw,noexec"),
            ],
        );
        let guest = |given: &[&str]| -> Vec<(String, String, String)> {
            let mounts = json!([{ "destination": "/d", "type": "bind", "source": "/v",
                                  "options": given }]);
            let (spec, _) = translated(mounts, &[Some(source.clone())]);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let made = spec["mounts"].as_array().unwrap().iter().map(|mount| {
                let options: Vec<_> = mount["options"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(text)
                    .collect();
                (
                    text(&mount["destination"]),
                    text(&mount["source"]),
                    options.join(","),
                )
            });
            made.collect()
        };
        let mount = |destination: &str, below: &str, options: &str| {
            let source = format!("/run/rvm/shared/box/mounts/0{below}");
            (destination.to_owned(), source, options.to_owned())
        };
        let (a, b) = ("bind,nofail,ro", "bind,nofail,rw,noexec");
        let expected = [
            mount("/d", "", "bind,ro"),
            mount("/d/a", "/a", a),
            mount("/d/a/b", "/a/b", b),
        ];
        assert_eq!(guest(&["rbind", "ro"]), expected);
        let all = ",rro,rprivate";
        assert_eq!(
            guest(&["rbind", "rro", "rprivate", "sync"]),
            [
                mount("/d", "", &format!("bind,rw,nosuid{all},sync")),
                mount("/d/a", "/a", &format!("{a}{all}")),
                mount("/d/a/b", "/a/b", &format!("{b}{all}")),
            ]
        );
        assert_eq!(guest(&["nofail"]), [mount("/d", "", "bind,rw,nosuid")]);
    }

    #[test]
    fn ids_are_mapped_on_the_host_by_the_mounts_map_or_the_containers() {
        let map = json!([{ "containerID": 0, "hostID": 7, "size": 10 }]);
        let mounts = json!([
            { "destination": "/a", "type": "bind", "source": "/a", "options": ["bind", "ridmap"] },
            { "destination": "/b", "type": "bind", "source": "/b", "options": ["bind"],
              "uidMappings": map, "gidMappings": map },
            { "destination": "/c", "type": "bind", "source": "/c", "options": ["bind"] },
        ]);
        let container = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        let config = json!({ "ociVersion": "1.2.0", "mounts": mounts,
            "linux": { "uidMappings": container, "gidMappings": container } });
        let mut spec: Spec = serde_json::from_value(config).unwrap();
        let files = |path: &str| Some(files(path, &[]));
        let sources = [files("/a"), files("/b"), files("/c")];
        let disks = &mut Stack::default();
        let (shared, _) = translate(&mut spec, &sources, "box", &Role::Alone, disks);
        let maps: Vec<_> = shared.iter().map(|shared| shared.idmap.clone()).collect();
        let map = |line: &str, recursive| {
            let (uids, gids) = (line.to_owned(), line.to_owned());
            Some(IdMap {
                uids,
                gids,
                recursive,
            })
        };
        assert_eq!(
            maps,
            [map("0 1000 1\n", true), map("0 7 10\n", false), None]
        );
        let left = serde_json::to_value(&spec).unwrap();
        assert_eq!(left["mounts"][0]["options"], json!(["bind"]));
        assert!(left["mounts"][1].get("uidMappings").is_none());
    }

    #[test]
    fn an_overlay_is_shared_as_a_volume() {
        let directories = "lowerdir=/l,upperdir=/u,workdir=/w";
        let mounts = json!([{ "destination": "/x", "type": "overlay", "source": "/o",
            "options": ["ro", directories, "rprivate"] }]);
        let source = Source::Overlay(directories.to_owned());
        let (spec, shared) = translated(mounts, &[Some(source)]);
        assert_eq!(shared[0].overlay.as_deref(), Some(directories));
        assert_eq!(shared[0].read_only, Some(true));
        let mount = &spec["mounts"][0];
        assert_eq!(mount["type"], "bind");
        assert_eq!(mount["source"], "/run/rvm/shared/box/mounts/0");
        assert_eq!(mount["options"], json!(["bind", "ro", "rprivate"]));
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
    fn a_hierarchy_of_version_one_makes_that_of_version_two_writable() {
        let mounts = json!([
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "ro"] },
            { "destination": "/sys/fs/cgroup/systemd", "type": "bind",
              "source": "/sys/fs/cgroup/systemd" },
        ]);
        let (spec, shared) = translated(mounts, &[None, Some(Source::CgroupV1)]);
        assert!(shared.is_empty());
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["mounts"][0]["options"], json!(["nosuid"]));
    }

    #[test]
    fn an_engines_shm_is_a_tmpfs_of_the_same_size() {
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
