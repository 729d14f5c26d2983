//! Names for fields of config.json in the words of whoever made it: a user of Kubernetes or Podman
//! writes another file or command, and looks for its words in a message. Pure.

use std::collections::HashMap;

use oci_spec::runtime::Spec;

use super::validate::FieldError;

/// The annotation by which Podman and CRI-O say who they are.
const MANAGER: &str = "io.container.manager";

/// Of each container that containerd makes for Kubernetes.
const CONTAINERD_CRI: &str = "io.kubernetes.cri.container-type";

const NETWORK: &str = "linux.namespaces.network";

/// A field, or the beginning of fields, with what asks for it: fields of Kubernetes's pods and of
/// its container runtime interface (CRI), and Podman's options. Empty if nothing does.
struct Names {
    field: &'static str,
    kubernetes: &'static str,
    podman: &'static str,
}

const fn names(field: &'static str, kubernetes: &'static str, podman: &'static str) -> Names {
    Names {
        field,
        kubernetes,
        podman,
    }
}

/// The first one that fits counts.
const NAMES: [Names; 15] = [
    names(
        NETWORK,
        "hostNetwork; CRI's linux.security_context.namespace_options.network",
        "--network bridge or --network none",
    ),
    names(
        "linux.namespaces.pid",
        "hostPID and shareProcessNamespace; CRI's linux.security_context.namespace_options.pid",
        "--pid",
    ),
    names(
        "linux.namespaces.ipc",
        "hostIPC; CRI's linux.security_context.namespace_options.ipc",
        "--ipc",
    ),
    names(
        "linux.namespaces.user",
        "hostUsers; CRI's linux.security_context.namespace_options.userns_options",
        "--userns",
    ),
    names("linux.namespaces.uts", "", "--uts"),
    names("linux.namespaces.cgroup", "", "--cgroupns"),
    names(
        "mounts",
        "volumeMounts and the volume's hostPath; CRI's mounts",
        "--volume and --mount",
    ),
    names("linux.devices", "CRI's devices", "--device"),
    names(
        "linux.seccomp",
        "securityContext.seccompProfile; CRI's linux.security_context.seccomp",
        "--security-opt seccomp",
    ),
    names(
        "linux.sysctl",
        "securityContext.sysctls; CRI's linux.sysctls",
        "--sysctl",
    ),
    names("linux.resources.cpu.realtimePeriod", "", "--cpu-rt-period"),
    names(
        "linux.resources.cpu.realtimeRuntime",
        "",
        "--cpu-rt-runtime",
    ),
    names(
        "linux.resources.memory.disableOOMKiller",
        "",
        "--oom-kill-disable",
    ),
    names("linux.personality", "", "--personality"),
    names("process.rlimits", "", "--ulimit"),
];

/// Adds to the reason what asks for the field.
pub fn explain(mut error: FieldError, spec: &Spec) -> FieldError {
    let none = HashMap::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    let manager = annotations.get(MANAGER).map(String::as_str);
    let is_kubernetes = manager == Some("cri-o") || annotations.contains_key(CONTAINERD_CRI);
    let field = with_kind(&error.field, spec);
    let Some(names) = NAMES.iter().find(|names| field.starts_with(names.field)) else {
        return error;
    };
    let (maker, name) = match manager {
        _ if is_kubernetes => ("in the pod this is", names.kubernetes),
        Some("libpod") => ("Podman's option is", names.podman),
        // Docker does not say who it is, and without an option its containers have a network.
        _ if field == NETWORK => ("an engine's option is", names.podman),
        _ => return error,
    };
    if !name.is_empty() {
        error.reason = format!("{} ({maker} {name})", error.reason);
    }
    error
}

/// The field with the kind of a namespace in place of its index. A field that names none is about
/// the network, the only namespace that every container must have.
fn with_kind(field: &str, spec: &Spec) -> String {
    const NAMESPACES: &str = "linux.namespaces";
    let Some(rest) = field.strip_prefix(NAMESPACES) else {
        return field.to_owned();
    };
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let index = rest.trim_start_matches('[').split(']').next();
    let index = index.and_then(|index| index.parse::<usize>().ok());
    let namespace = index.and_then(|index| list?.get(index));
    let kind = namespace.map_or("network".to_owned(), |namespace| {
        namespace.typ().to_string()
    });
    format!("{NAMESPACES}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn explained(annotation: (&str, &str), field: &str) -> String {
        let spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "annotations": { annotation.0: annotation.1 },
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "ipc", "path": "/x" }] },
        }));
        let error = FieldError {
            field: field.to_owned(),
            reason: "cannot be".to_owned(),
        };
        explain(error, &spec.unwrap()).reason
    }

    #[test]
    fn a_pods_user_reads_the_names_that_kubernetes_gives_fields() {
        for by in [(CONTAINERD_CRI, "sandbox"), (MANAGER, "cri-o")] {
            assert!(explained(by, "linux.namespaces").contains("hostNetwork"));
            assert!(explained(by, "linux.namespaces[1].path").contains("hostIPC"));
            assert!(explained(by, "linux.seccomp.defaultAction").contains("seccompProfile"));
            assert_eq!(explained(by, "linux.personality.flags"), "cannot be");
        }
    }

    #[test]
    fn podmans_user_reads_options() {
        let by = (MANAGER, "libpod");
        let network = explained(by, "linux.namespaces");
        assert!(network.ends_with("(Podman's option is --network bridge or --network none)"));
        assert!(explained(by, "mounts[3].source").contains("--volume"));
        assert_eq!(explained(by, "ociVersion"), "cannot be");
    }

    #[test]
    fn others_read_the_field_and_the_option_for_a_network() {
        assert!(explained(("a", "b"), "linux.namespaces").ends_with("--network none)"));
        assert_eq!(explained(("a", "b"), "mounts[3].source"), "cannot be");
    }
}
