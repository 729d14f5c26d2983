//! Pods: annotations name the sandbox that containers share, and namespace paths the namespaces
//! that they share in it. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::validate::FieldError;
use crate::sizing::pod_limits;

/// A container's role in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Not in a pod: it gets a sandbox of its own.
    #[default]
    Alone,
    /// The first container of a pod: it gets the sandbox that the others join.
    Sandbox,
    /// It joins the sandbox of the container with this id.
    Member(String),
}

/// The annotations for a container's type and for its sandbox's id.
struct AnnotationKeys {
    kind: &'static str,
    sandbox: &'static str,
}

/// containerd's keys, and those of CRI-O and Podman.
const KEYS: [AnnotationKeys; 2] = [
    AnnotationKeys {
        kind: "io.kubernetes.cri.container-type",
        sandbox: "io.kubernetes.cri.sandbox-id",
    },
    AnnotationKeys {
        kind: "io.kubernetes.cri-o.ContainerType",
        sandbox: "io.kubernetes.cri-o.SandboxID",
    },
];

/// The keys of all annotations that rvm reads.
pub fn annotations() -> Vec<&'static str> {
    KEYS.iter()
        .flat_map(|keys| [keys.kind, keys.sandbox])
        .chain(pod_limits::ANNOTATIONS)
        .collect()
}

impl Role {
    /// Fails if the annotations contradict each other.
    pub fn of(spec: &Spec) -> Result<Self, FieldError> {
        spec.annotations()
            .as_ref()
            .map_or(Ok(Self::Alone), Self::from_annotations)
    }

    /// As [`Self::of`], from the annotations alone.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Self, FieldError> {
        let Some((keys, kind)) = KEYS
            .iter()
            .find_map(|keys| Some((keys, annotations.get(keys.kind)?)))
        else {
            // Podman 5 sets only the sandbox id, and only for the containers after the first.
            let first = annotations.get(KEYS[1].sandbox).filter(|id| !id.is_empty());
            return Ok(first.map_or(Self::Alone, |id| Self::Member(id.clone())));
        };
        match (kind.as_str(), annotations.get(keys.sandbox)) {
            ("sandbox", _) => Ok(Self::Sandbox),
            ("container", Some(id)) if !id.is_empty() => Ok(Self::Member(id.clone())),
            ("container", _) => Err(FieldError {
                field: format!("annotations[{:?}]", keys.sandbox),
                reason: "is missing, and the container is said to belong to a sandbox".to_owned(),
            }),
            (other, _) => Err(FieldError {
                field: format!("annotations[{:?}]", keys.kind),
                reason: format!("is {other:?}; it is sandbox or container"),
            }),
        }
    }
}

/// A container that is already in the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its pid on the host.
    pub host_pid: i32,
    /// The pid of its init process in the guest.
    pub guest_pid: u32,
    /// The namespace paths of its own configuration.
    pub namespaces: Vec<(LinuxNamespaceType, PathBuf)>,
}

impl Peer {
    /// The namespace paths of a configuration.
    pub fn paths(spec: &Spec) -> Vec<(LinuxNamespaceType, PathBuf)> {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        let path = |namespace: &LinuxNamespace| Some((namespace.typ(), path_of(namespace)?.into()));
        namespaces.into_iter().flatten().filter_map(path).collect()
    }

    /// Whether a path on the host names the peer's namespace of this kind.
    fn owns(&self, kind: LinuxNamespaceType, path: &Path) -> bool {
        let own = format!("/proc/{}/ns/{}", self.host_pid, file_name(kind));
        path == Path::new(&own)
            || self
                .namespaces
                .iter()
                .any(|(of, given)| *of == kind && given == path)
    }
}

/// The path of a namespace to join, if there is one.
pub fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// The guest's namespaces for a container with a sandbox of its own.
///
/// The container uses the machine's initial network namespace, which has the machine's NICs. A path
/// of another kind is a namespace that an engine has created for the pod on the host; the guest
/// creates one of its own.
pub fn own_namespaces(list: &[LinuxNamespace]) -> Vec<LinuxNamespace> {
    let not_network = |namespace: &&LinuxNamespace| namespace.typ() != LinuxNamespaceType::Network;
    let mut list: Vec<_> = list.iter().filter(not_network).cloned().collect();
    list.iter_mut()
        .for_each(|namespace| _ = namespace.set_path(None));
    list
}

/// The guest's namespaces for a container that joins a sandbox: paths of its peers' namespaces on
/// the host become paths in the guest.
pub fn joined_namespaces(
    list: &[LinuxNamespace],
    peers: &[Peer],
) -> Result<Vec<LinuxNamespace>, FieldError> {
    let mut joined = Vec::new();
    for (index, namespace) in list.iter().enumerate() {
        let mut namespace = namespace.clone();
        let kind = namespace.typ();
        if let Some(path) = path_of(&namespace) {
            let peer = peers.iter().find(|peer| peer.owns(kind, path));
            let peer = peer.ok_or_else(|| FieldError {
                field: format!("linux.namespaces[{index}].path"),
                reason: format!("{} is no namespace of the pod's", path.display()),
            })?;
            if kind == LinuxNamespaceType::Network {
                continue;
            }
            let inside = format!("/proc/{}/ns/{}", peer.guest_pid, file_name(kind));
            namespace.set_path(Some(inside.into()));
        }
        joined.push(namespace);
    }
    Ok(joined)
}

/// A namespace's file name in /proc/<pid>/ns.
fn file_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(annotations: serde_json::Value) -> Result<Role, FieldError> {
        Role::from_annotations(&serde_json::from_value(annotations).unwrap())
    }

    fn namespaces(list: serde_json::Value) -> Vec<LinuxNamespace> {
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn the_annotations_of_all_engines_are_understood() {
        assert_eq!(role(json!({ "other": "x" })), Ok(Role::Alone));
        for (kind, id) in [
            (
                "io.kubernetes.cri.container-type",
                "io.kubernetes.cri.sandbox-id",
            ),
            (
                "io.kubernetes.cri-o.ContainerType",
                "io.kubernetes.cri-o.SandboxID",
            ),
        ] {
            assert_eq!(
                role(json!({ kind: "sandbox", id: "pod" })),
                Ok(Role::Sandbox)
            );
            assert_eq!(
                role(json!({ kind: "container", id: "pod" })),
                Ok(Role::Member("pod".to_owned()))
            );
            assert!(
                role(json!({ kind: "container" }))
                    .unwrap_err()
                    .field
                    .contains(id)
            );
            assert!(role(json!({ kind: "image" })).is_err());
        }
    }

    #[test]
    fn a_member_of_a_pod_of_podman_5_is_known_by_the_sandbox_alone() {
        let id = "io.kubernetes.cri-o.SandboxID";
        let member = Role::Member("first".to_owned());
        assert_eq!(role(json!({ id: "first" })), Ok(member));
        assert_eq!(role(json!({ id: "" })), Ok(Role::Alone));
    }

    #[test]
    fn a_sandbox_makes_its_namespaces_in_the_guest() {
        let list = namespaces(json!([
            { "type": "network", "path": "/run/netns/a" },
            { "type": "ipc", "path": "/run/ipcns/a" },
            { "type": "pid" },
        ]));
        let own = own_namespaces(&list);
        assert_eq!(
            own,
            namespaces(json!([{ "type": "ipc" }, { "type": "pid" }]))
        );
    }

    fn peers() -> Vec<Peer> {
        let netns = (LinuxNamespaceType::Network, "/run/netns/a".into());
        vec![
            Peer {
                host_pid: 4000,
                guest_pid: 7,
                namespaces: vec![netns],
            },
            Peer {
                host_pid: 4001,
                guest_pid: 12,
                namespaces: Vec::new(),
            },
        ]
    }

    #[test]
    fn a_members_paths_lead_to_the_same_namespaces_in_the_guest() {
        let list = namespaces(json!([
            { "type": "network", "path": "/run/netns/a" },
            { "type": "ipc", "path": "/proc/4000/ns/ipc" },
            { "type": "pid", "path": "/proc/4001/ns/pid" },
            { "type": "mount" },
        ]));
        let joined = joined_namespaces(&list, &peers()).unwrap();
        let wanted = json!([
            { "type": "ipc", "path": "/proc/7/ns/ipc" },
            { "type": "pid", "path": "/proc/12/ns/pid" },
            { "type": "mount" },
        ]);
        assert_eq!(joined, namespaces(wanted));
    }

    #[test]
    fn namespaces_that_cri_o_has_pinned_for_a_pod_are_those_of_its_first_container() {
        let pinned = json!([
            { "type": "network", "path": "/var/run/netns/uuid" },
            { "type": "ipc", "path": "/var/run/ipcns/uuid" },
            { "type": "uts", "path": "/var/run/utsns/uuid" },
        ]);
        let first: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.0", "linux": { "namespaces": pinned },
        }))
        .unwrap();
        let first = Peer {
            host_pid: 4000,
            guest_pid: 7,
            namespaces: Peer::paths(&first),
        };
        let joined = joined_namespaces(&namespaces(pinned), &[first]).unwrap();
        let wanted = json!([
            { "type": "ipc", "path": "/proc/7/ns/ipc" },
            { "type": "uts", "path": "/proc/7/ns/uts" },
        ]);
        assert_eq!(joined, namespaces(wanted));
    }

    #[test]
    fn a_namespace_of_somebody_else_is_refused() {
        for (kind, path) in [
            ("network", "/run/netns/b"),
            ("ipc", "/proc/1/ns/ipc"),
            ("ipc", "/proc/4000/ns/uts"),
        ] {
            let list = namespaces(json!([{ "type": kind, "path": path }]));
            let error = joined_namespaces(&list, &peers()).unwrap_err();
            assert_eq!(error.field, "linux.namespaces[0].path");
            assert!(error.reason.contains(path));
        }
    }
}
