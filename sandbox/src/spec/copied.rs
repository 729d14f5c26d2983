//! The configuration of a copy of a container, in a bundle of its own.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The root file system of the copy, below its bundle.
pub(crate) const ROOTFS: &str = "rootfs";

/// The longest host name, see gethostname(2).
const MAX_HOSTNAME: usize = 64;

/// Changes a configuration to that of a copy with this id: what can be had once alone becomes its
/// own, and what is named from the directory of the bundle is named by its path.
pub(crate) fn adapt(config: &mut Value, bundle: &Path, rootfs: &Path, id: &str) {
    let Some(config) = config.as_object_mut() else {
        return;
    };
    if let Some(root) = config.get_mut("root").and_then(Value::as_object_mut) {
        // A root that nobody writes to serves all.
        let path = match is_read_only(root) {
            true => rootfs.to_string_lossy().into_owned(),
            false => ROOTFS.to_owned(),
        };
        root.insert("path".to_owned(), path.into());
    }
    if config.contains_key("hostname") {
        let end = id.len().min(MAX_HOSTNAME);
        let name = id.get(..end).unwrap_or(id);
        config.insert("hostname".to_owned(), json!(name));
    }
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        if let (true, Some(source)) = (is_bind(mount), mount.get_mut("source"))
            && let Some(path) = source.as_str()
        {
            *source = json!(bundle.join(path).to_string_lossy());
        }
    }
    if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
        adapt_linux(linux, id);
    }
}

fn adapt_linux(linux: &mut Map<String, Value>, id: &str) {
    // The network namespace of the first has room for one machine, and the first has the devices.
    linux.remove("netDevices");
    let namespaces = linux.get_mut("namespaces").and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        if namespace["type"] == "network"
            && let Some(namespace) = namespace.as_object_mut()
        {
            namespace.remove("path");
        }
    }
    if let Some(path) = linux.get_mut("cgroupsPath")
        && let Some(text) = path.as_str().filter(|text| !text.is_empty())
    {
        // A path, or systemd's slice:prefix:name.
        let parent = text.rfind(['/', ':']).map_or(0, |index| index + 1);
        *path = json!(format!("{}{id}", text.get(..parent).unwrap_or_default()));
    }
}

/// Whether a root, by its object, is read-only.
pub(crate) fn is_read_only(root: &Map<String, Value>) -> bool {
    root.get("readonly").and_then(Value::as_bool) == Some(true)
}

fn is_bind(mount: &Value) -> bool {
    let options = mount["options"].as_array().into_iter().flatten();
    mount["type"] == "bind"
        || options
            .clone()
            .any(|option| option == "bind" || option == "rbind")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(mut config: Value, id: &str) -> Value {
        adapt(
            &mut config,
            Path::new("/b/web"),
            Path::new("/b/web/root"),
            id,
        );
        config
    }

    #[test]
    fn a_copy_shares_nothing_with_the_first_that_one_alone_can_have() {
        let copy = adapted(
            json!({
                "root": {"path": "root"},
                "hostname": "web",
                "mounts": [
                    {"destination": "/data", "source": "data", "options": ["rbind"]},
                    {"destination": "/abs", "source": "/abs", "type": "bind"},
                    {"destination": "/tmp", "source": "tmpfs", "type": "tmpfs"}
                ],
                "linux": {
                    "namespaces": [{"type": "network", "path": "/run/netns/web"}, {"type": "uts"}],
                    "netDevices": {"eth1": {}},
                    "cgroupsPath": "/pods/web"
                }
            }),
            "web1",
        );
        assert_eq!(
            copy,
            json!({
                "root": {"path": "rootfs"},
                "hostname": "web1",
                "mounts": [
                    {"destination": "/data", "source": "/b/web/data", "options": ["rbind"]},
                    {"destination": "/abs", "source": "/abs", "type": "bind"},
                    {"destination": "/tmp", "source": "tmpfs", "type": "tmpfs"}
                ],
                "linux": {
                    "namespaces": [{"type": "network"}, {"type": "uts"}],
                    "cgroupsPath": "/pods/web1"
                }
            })
        );
    }

    #[test]
    fn a_group_of_systemds_keeps_its_slice_and_a_read_only_root_is_shared() {
        let copy = adapted(
            json!({
                "root": {"path": "root", "readonly": true},
                "linux": {"cgroupsPath": "machine.slice:rvm:web"}
            }),
            "web1",
        );
        assert_eq!(copy["root"]["path"], "/b/web/root");
        assert_eq!(copy["linux"]["cgroupsPath"], "machine.slice:rvm:web1");
        assert_eq!(copy.get("hostname"), None);
        assert_eq!(
            adapted(json!({"linux": {"cgroupsPath": "web"}}), "a")["linux"]["cgroupsPath"],
            "a"
        );
    }

    #[test]
    fn a_long_id_is_cut_to_a_host_name() {
        let id = "x".repeat(100);
        let copy = adapted(json!({"hostname": "web"}), &id);
        assert_eq!(copy["hostname"].as_str().unwrap().len(), MAX_HOSTNAME);
    }
}
