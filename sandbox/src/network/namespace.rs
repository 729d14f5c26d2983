//! Network namespaces of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use rvm_sys::namespaces::unshare;

use super::NetworkError;

const OWN: &str = "/proc/thread-self/ns/net";

/// The namespace of the host's pid 1.
const HOST: &str = "/proc/1/ns/net";

/// Where a container's network namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceSource {
    /// rvm creates it.
    New,
    /// An existing namespace is mounted here.
    Path(PathBuf),
}

impl NamespaceSource {
    /// Reads `linux.namespaces`. None if config.json asks for the host's own network.
    pub fn of(spec: &Spec) -> Option<Self> {
        let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
        let network = namespaces
            .iter()
            .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
        match network.path() {
            Some(path) if !path.as_os_str().is_empty() => Some(Self::Path(path.clone())),
            _ => Some(Self::New),
        }
    }
}

/// An open network namespace. The kernel keeps it as long as the descriptor is open.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Fails if the namespace at a path is the host's own.
    pub fn create_or_open(source: &NamespaceSource) -> Result<Self, NetworkError> {
        match source {
            NamespaceSource::New => Self::create().map_err(NetworkError::Create),
            NamespaceSource::Path(path) => Self::open(path),
        }
    }

    fn create() -> io::Result<Self> {
        let own = Self(File::open(OWN)?);
        unshare(UnshareFlags::NEWNET)?;
        let made = File::open(OWN);
        own.enter()?;
        Ok(Self(made?))
    }

    fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Open {
            path: path.to_owned(),
            source,
        };
        let namespace = Self(File::open(path).map_err(failed)?);
        let kind = LinkNameSpaceType::Network;
        namespace
            .within(|| ())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => {
                    failed(io::Error::other(format!("it is no {kind:?} namespace")))
                }
                _ => failed(error),
            })?;
        // In a container, the caller's own namespace is the one to protect.
        if namespace.is_at(HOST) || namespace.is_at(OWN) {
            return Err(NetworkError::Host(path.to_owned()));
        }
        Ok(namespace)
    }

    /// The calling thread's namespace.
    pub fn own() -> io::Result<Self> {
        File::open(OWN).map(Self)
    }

    /// Another descriptor of the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Moves the calling thread into the namespace. /proc/pid/ns shows that of the main thread.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.0.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Calls `work` with the calling thread in the namespace.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let own = Self::own()?;
        self.enter()?;
        let done = work();
        own.enter()?;
        Ok(done)
    }

    fn is_at(&self, path: &str) -> bool {
        // A caller without permission to read the path is not in that namespace.
        let (Ok(this), Ok(other)) = (self.0.metadata(), std::fs::metadata(path)) else {
            return false;
        };
        (this.dev(), this.ino()) == (other.dev(), other.ino())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(namespaces: serde_json::Value) -> Option<NamespaceSource> {
        let config = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "linux": { "namespaces": namespaces },
        });
        NamespaceSource::of(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn a_namespace_without_a_path_is_new_and_none_is_the_hosts() {
        assert_eq!(
            wanted(json!([{ "type": "network" }])),
            Some(NamespaceSource::New)
        );
        let empty = json!([{ "type": "network", "path": "" }]);
        assert_eq!(wanted(empty), Some(NamespaceSource::New));
        let path = json!([{ "type": "network", "path": "/run/netns/a" }]);
        assert_eq!(
            wanted(path),
            Some(NamespaceSource::Path("/run/netns/a".into()))
        );
        assert_eq!(wanted(json!([{ "type": "mount" }])), None);
    }

    #[test]
    fn a_new_namespace_is_another_and_the_thread_comes_back() {
        let made = Namespace::create_or_open(&NamespaceSource::New).unwrap();
        assert!(!made.is_at(OWN));
        assert!(made.within(|| made.is_at(OWN)).unwrap());
        assert!(!made.is_at(OWN));
    }

    #[test]
    fn the_hosts_own_namespace_is_refused_with_advice() {
        let error = Namespace::create_or_open(&NamespaceSource::Path(OWN.into())).unwrap_err();
        assert!(error.to_string().contains("--network"), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        for path in ["/etc/passwd", "/proc/self/ns/mnt", "/nonexistent"] {
            let error = Namespace::create_or_open(&NamespaceSource::Path(path.into())).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
