use serde_json::{Value, json};

use super::*;
use crate::init::plan::MountSource;
use rvm_sys::mount::attr;

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": { "args": ["/bin/true"], "cwd": "/", "user": {} },
        "root": { "path": "/run/rvm/shared/c/rootfs" },
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] },
    })
}

fn translated(change: impl FnOnce(&mut Value)) -> Result<ContainerSpec, SpecError> {
    let mut spec = base();
    change(&mut spec);
    translate("c", spec.to_string().as_bytes())
}

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    translated(change).unwrap_err().to_string()
}

#[test]
fn a_small_config_is_taken() {
    let spec = translated(|_| {}).unwrap();
    assert_eq!(spec.process.args, ["/bin/true"]);
    assert_eq!(spec.process.umask, 0o022);
    assert!(spec.namespaces.owns_pid);
    assert!(spec.container.populate_dev);
    assert_eq!(spec.container.devices.len(), 6);
}

#[test]
fn what_the_guest_cannot_honour_is_refused_by_name() {
    assert_eq!(
        refusal(|spec| spec["linux"]["intelRdt"] = json!({ "closID": "x" })),
        "config.json: linux.intelRdt is not supported in the guest"
    );
    assert_eq!(
        refusal(|spec| spec["linux"]["namespaces"] = json!([])),
        "config.json: linux.namespaces without a mount namespace is not supported in the guest"
    );
    assert_eq!(
        refusal(|spec| spec["process"]["cwd"] = json!("tmp")),
        "config.json: process.cwd is not an absolute path"
    );
    assert_eq!(
        refusal(|spec| spec["root"] = Value::Null),
        "config.json: root is missing"
    );
}

#[test]
fn a_namespace_is_new_joined_or_the_guests() {
    let spec = translated(|spec| {
        spec["linux"]["namespaces"] = json!([
            { "type": "mount" },
            { "type": "network", "path": "/proc/7/ns/net" },
            { "type": "cgroup" },
            { "type": "uts", "path": "" },
        ]);
    });
    let namespaces = spec.unwrap().namespaces;
    assert_eq!(
        namespaces.create,
        (libc::CLONE_NEWNS | libc::CLONE_NEWUTS) as u64
    );
    assert_eq!(namespaces.join.len(), 1);
    assert!(namespaces.unshare_cgroup && namespaces.has_uts && !namespaces.owns_pid);
}

#[test]
fn a_host_name_needs_a_uts_namespace() {
    assert_eq!(
        refusal(|spec| spec["hostname"] = json!("h")),
        "config.json: hostname needs a UTS namespace of the container's own"
    );
}

#[test]
fn a_user_namespace_has_maps_and_finds_its_root_outside() {
    let spec = translated(|spec| {
        spec["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "user" }]);
        let map = json!([{ "containerID": 0, "hostID": 100000, "size": 65536 }]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let spec = spec.unwrap();
    let UserNamespace::New { uid_map, root, .. } = &spec.namespaces.user else {
        panic!()
    };
    assert_eq!(uid_map, "0 100000 65536\n");
    assert_eq!(*root, Some((100_000, 100_000)));
    assert!(spec.container.bind_devices);
}

#[test]
fn mounts_are_told_apart_by_type_and_options() {
    let spec = translated(|spec| {
        spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "data", "type": "none", "source": "/run/rvm/shared/v",
              "options": ["rbind", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"] },
            { "destination": "/tmp", "type": "tmpfs", "options": ["mode=1777", "tmpcopyup"] },
        ]);
    });
    let mounts = spec.unwrap().container.mounts;
    assert!(matches!(&mounts[0].source, MountSource::Filesystem { kind, .. } if kind == "proc"));
    assert!(matches!(
        &mounts[1].source,
        MountSource::Bind {
            recursive: true,
            ..
        }
    ));
    assert_eq!(
        (mounts[1].destination.as_str(), mounts[1].attributes.set),
        ("/data", attr::RDONLY)
    );
    assert_eq!(mounts[2].source, MountSource::Cgroup);
    assert!(matches!(
        &mounts[3].source,
        MountSource::Filesystem { copy_up: true, .. }
    ));
}

#[test]
fn a_mount_with_id_maps_names_the_map_it_uses() {
    let spec = translated(|spec| {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
        spec["mounts"] = json!([{
            "destination": "/m", "type": "bind", "source": "/s", "options": ["bind", "ridmap"],
            "uidMappings": map, "gidMappings": map,
        }]);
    });
    let spec = spec.unwrap();
    assert!(matches!(
        spec.container.mounts[0].source,
        MountSource::Bind {
            prepared: Some(0),
            ..
        }
    ));
    assert!(
        spec.idmaps[0]
            .bind
            .as_ref()
            .is_some_and(|bind| bind.map_recursive)
    );
}

#[test]
fn a_device_of_config_json_replaces_the_default_one() {
    let spec = translated(|spec| {
        spec["linux"]["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600 }]);
    });
    let devices = spec.unwrap().container.devices;
    let null: Vec<_> = devices
        .iter()
        .filter(|device| device.path == "/dev/null")
        .collect();
    assert_eq!(null.len(), 1);
    assert_eq!(null[0].mode, libc::S_IFCHR | 0o600);
}

#[test]
fn a_bound_dev_is_left_alone() {
    let spec = translated(|spec| {
        spec["mounts"] = json!([{ "destination": "/dev/", "type": "bind", "source": "/dev", "options": ["bind"] }]);
    });
    let plan = spec.unwrap().container;
    assert!(!plan.populate_dev && plan.devices.is_empty());
}

#[test]
fn sysctl_names_become_paths() {
    let spec = translated(|spec| {
        spec["linux"]["sysctl"] = json!({
            "net.ipv4.ip_forward": "1",
            "net/ipv4/conf/eth0.1/forwarding": "1",
            "net.ipv4.conf.eth0/2.forwarding": "1",
        });
    });
    let sysctls = spec.unwrap().container.sysctls;
    let names: Vec<_> = sysctls.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "net/ipv4/conf/eth0.1/forwarding",
            "net/ipv4/conf/eth0.2/forwarding",
            "net/ipv4/ip_forward"
        ]
    );
    assert!(refusal(|spec| spec["linux"]["sysctl"] = json!({ "a/../b": "1" })).contains("a/../b"));
}

#[test]
fn settings_of_the_guests_network_are_not_for_a_user_namespace_to_write() {
    let set = |spec: &mut Value| {
        spec["linux"]["sysctl"] = json!({ "net.core.somaxconn": "9", "kernel.shmmni": "7" });
    };
    let plain = translated(set).unwrap();
    assert_eq!(
        (plain.container.sysctls.len(), plain.guest_sysctls.len()),
        (2, 0)
    );
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let mapped = translated(|spec| {
        set(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let mapped = mapped.unwrap();
    assert!(mapped.container.sysctls.keys().eq(["kernel/shmmni"]));
    assert!(mapped.guest_sysctls.keys().eq(["net/core/somaxconn"]));
}

#[test]
fn time_offsets_need_a_time_namespace() {
    let offsets = json!({ "boottime": { "secs": 100 } });
    let spec = translated(|spec| {
        spec["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "time" }]);
        spec["linux"]["timeOffsets"] = offsets.clone();
    });
    assert_eq!(
        spec.unwrap().container.time_offsets,
        Some(vec![(libc::CLOCK_BOOTTIME, 100, 0)])
    );
    assert!(refusal(|spec| spec["linux"]["timeOffsets"] = offsets).contains("time namespace"));
}
