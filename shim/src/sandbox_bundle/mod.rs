//! The bundle of a sandbox that containerd makes through its sandbox API, where the pod has no
//! container image for its sandbox: config.json and a root with the pause program, and the files
//! that the pod's containers share.

pub mod files;
pub mod pause;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use crate::messages::cri::{
    IDMapping, LinuxContainerResources, NamespaceMode, PodSandboxConfig, UserNamespace,
};
use crate::rootfs::ROOTFS;

/// The directory of the root if containerd mounts none. It is not `rootfs`, which containerd
/// removes expecting it to be empty.
const OWN_ROOT: &str = "sandbox";

/// The end of the name of the type of options that the CRI plugin sends.
const CONFIG_TYPE: &str = "PodSandboxConfig";

/// The annotations by which containerd marks the sandbox's container elsewhere.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

#[derive(Debug, thiserror::Error)]
pub enum SandboxBundleError {
    #[error("the sandbox's configuration is of type {0}, not {CONFIG_TYPE}")]
    UnknownType(String),
    #[error("cannot decode the sandbox's configuration")]
    Decode(#[source] protobuf::Error),
    #[error("cannot write the sandbox's bundle {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes config.json, root and files into the bundle; returns the directory of the files.
pub fn write(bundle: &Path, request: &CreateSandboxRequest) -> Result<PathBuf, SandboxBundleError> {
    let config = parse(request.options.get_or_default())?;
    write_files(bundle, request, &config).map_err(|source| SandboxBundleError::Write {
        path: bundle.to_owned(),
        source,
    })
}

fn write_files(
    bundle: &Path,
    request: &CreateSandboxRequest,
    config: &PodSandboxConfig,
) -> io::Result<PathBuf> {
    if request.rootfs.is_empty() {
        let root = bundle.join(OWN_ROOT);
        fs::create_dir_all(&root)?;
        for dir in ["dev", "proc", "sys"] {
            fs::create_dir_all(root.join(dir))?;
        }
        pause::install(&root)?;
    }
    let spec = spec(request, config).to_string();
    fs::write(bundle.join("config.json"), spec)?;
    files::write(bundle, config)
}

fn parse(options: &Any) -> Result<PodSandboxConfig, SandboxBundleError> {
    match options.type_url.as_str() {
        "" => Ok(PodSandboxConfig::default()),
        kind if kind.ends_with(CONFIG_TYPE) => {
            PodSandboxConfig::parse_from_bytes(&options.value).map_err(SandboxBundleError::Decode)
        }
        kind => Err(SandboxBundleError::UnknownType(kind.to_owned())),
    }
}

fn spec(request: &CreateSandboxRequest, config: &PodSandboxConfig) -> Value {
    let linux = &config.linux;
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": [format!("/{}", pause::NAME)],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": root_of(request), "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=64k"] },
        ],
        "annotations": annotations(request, config),
        "linux": {
            "namespaces": namespaces(request, config),
            "resources": resources(&linux.resources),
            "sysctl": linux.sysctls,
        },
    });
    if let Some(users) = own_users(config) {
        spec["linux"]["uidMappings"] = mappings(&users.uids);
        spec["linux"]["gidMappings"] = mappings(&users.gids);
    }
    if !config.hostname.is_empty() {
        spec["hostname"] = config.hostname.as_str().into();
    }
    if !linux.cgroup_parent.is_empty() {
        spec["linux"]["cgroupsPath"] = cgroups_path(&linux.cgroup_parent, &request.sandbox_id);
    }
    spec
}

fn root_of(request: &CreateSandboxRequest) -> &'static str {
    match request.rootfs.is_empty() {
        true => OWN_ROOT,
        false => ROOTFS,
    }
}

/// The cgroup of the sandbox's container, in systemd's notation if the pod's cgroup is a slice.
fn cgroups_path(parent: &str, id: &str) -> Value {
    let last = Path::new(parent).file_name().unwrap_or_default();
    let path = match last.to_str() {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:rvm:{id}").into(),
        _ => PathBuf::from(parent).join(id),
    };
    path.to_string_lossy().into()
}

fn annotations(
    request: &CreateSandboxRequest,
    config: &PodSandboxConfig,
) -> HashMap<String, String> {
    let mut annotations = config.annotations.clone();
    annotations.extend(request.annotations.clone());
    annotations.insert(CONTAINER_TYPE.to_owned(), "sandbox".to_owned());
    annotations.insert(SANDBOX_ID.to_owned(), request.sandbox_id.clone());
    annotations
}

fn namespaces(request: &CreateSandboxRequest, config: &PodSandboxConfig) -> Vec<Value> {
    let options = &config.linux.security_context.namespace_options;
    let is_nodes =
        |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode == NamespaceMode::NODE.into();
    let mut namespaces = vec![
        json!({ "type": "mount" }),
        json!({ "type": "uts" }),
        json!({ "type": "pid" }),
    ];
    if !is_nodes(options.ipc) {
        namespaces.push(json!({ "type": "ipc" }));
    }
    if own_users(config).is_some() {
        namespaces.push(json!({ "type": "user" }));
    }
    // No entry means the host's network namespace, which validation refuses with a reason.
    if !is_nodes(options.network) {
        namespaces.push(match request.netns_path.as_str() {
            "" => json!({ "type": "network" }),
            path => json!({ "type": "network", "path": path }),
        });
    }
    namespaces
}

/// The users of a pod with `hostUsers: false`.
fn own_users(config: &PodSandboxConfig) -> Option<&UserNamespace> {
    let options = &config.linux.security_context.namespace_options;
    let users = options.userns_options.as_ref();
    users.filter(|users| users.mode == NamespaceMode::POD.into() && !users.uids.is_empty())
}

fn mappings(maps: &[IDMapping]) -> Value {
    let one = |map: &IDMapping| json!({ "hostID": map.host_id, "containerID": map.container_id, "size": map.length });
    maps.iter().map(one).collect()
}

/// The limits of all the pod's containers together, if the kubelet states them.
fn resources(resources: &LinuxContainerResources) -> Value {
    let mut json = json!({});
    if resources.memory_limit_in_bytes > 0 {
        json["memory"] = json!({ "limit": resources.memory_limit_in_bytes });
    }
    let mut cpu = serde_json::Map::new();
    if resources.cpu_quota > 0 {
        cpu.insert("quota".to_owned(), resources.cpu_quota.into());
    }
    if resources.cpu_period > 0 {
        cpu.insert("period".to_owned(), resources.cpu_period.into());
    }
    if resources.cpu_shares > 0 {
        cpu.insert("shares".to_owned(), resources.cpu_shares.into());
    }
    for (name, list) in [
        ("cpus", &resources.cpuset_cpus),
        ("mems", &resources.cpuset_mems),
    ] {
        if !list.is_empty() {
            cpu.insert(name.to_owned(), list.as_str().into());
        }
    }
    if !cpu.is_empty() {
        json["cpu"] = cpu.into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sandbox::spec::pod::Role;

    fn request(config: &PodSandboxConfig) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "pod".to_owned(),
            netns_path: "/run/netns/pod".to_owned(),
            options: Some(Any {
                type_url: "runtime.v1.PodSandboxConfig".to_owned(),
                value: config.write_to_bytes().unwrap(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_sandboxs_bundle_can_be_run() {
        let mut config = PodSandboxConfig::new();
        config.hostname = "web".to_owned();
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".to_owned();
        let resources = linux.resources.mut_or_insert_default();
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &request(&config)).unwrap();
        files::unmount(dir.path()).unwrap();
        let text = fs::read(dir.path().join("config.json")).unwrap();
        let spec: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(spec["hostname"], "web");
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/pod");
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert!(dir.path().join("sandbox/pause").exists());
        let role = Role::of(&serde_json::from_value(spec).unwrap());
        assert_eq!(role, Ok(Role::Sandbox));
    }

    #[test]
    fn a_sandbox_may_have_users_of_its_own() {
        let mut config = PodSandboxConfig::new();
        let linux = config.linux.mut_or_insert_default();
        let security = linux.security_context.mut_or_insert_default();
        let options = security.namespace_options.mut_or_insert_default();
        let users = options.userns_options.mut_or_insert_default();
        let map = IDMapping {
            host_id: 100_000,
            length: 65_536,
            ..Default::default()
        };
        users.uids.push(map.clone());
        users.gids.push(map);
        let spec = |config: &PodSandboxConfig| spec(&request(config), config);
        let found = spec(&config);
        let mapped = json!([{ "hostID": 100_000, "containerID": 0, "size": 65_536 }]);
        assert_eq!(found["linux"]["uidMappings"], mapped);
        assert_eq!(found["linux"]["gidMappings"], mapped);
        let user = json!({ "type": "user" });
        let has_user = |spec: &Value| {
            let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
            namespaces.contains(&user)
        };
        assert!(has_user(&found));
        let linux = config.linux.as_mut().unwrap();
        let options = &mut linux.security_context.as_mut().unwrap().namespace_options;
        options
            .as_mut()
            .unwrap()
            .userns_options
            .as_mut()
            .unwrap()
            .mode = NamespaceMode::NODE.into();
        assert!(!has_user(&spec(&config)));
    }

    #[test]
    fn a_cgroup_in_a_slice_has_systemds_notation() {
        let path = cgroups_path("/kubepods.slice/kubepods-pod1.slice", "pod");
        assert_eq!(path, "kubepods-pod1.slice:rvm:pod");
    }

    #[test]
    fn another_configuration_is_refused_by_its_type() {
        let options = Any {
            type_url: "other.Config".to_owned(),
            ..Default::default()
        };
        assert!(
            parse(&options)
                .unwrap_err()
                .to_string()
                .contains("other.Config")
        );
    }
}
