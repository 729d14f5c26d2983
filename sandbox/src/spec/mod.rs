//! config.json: reading it, checking it, and translating it for the guest.

pub mod hooks;
pub mod mounts;
pub mod pod;
pub mod process;
pub mod resources;
pub mod sources;
mod spelling;
pub mod translate;
pub mod unsupported;
pub mod validate;

#[cfg(test)]
mod conformance;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use pod::Role;
use sources::Source;
use validate::Problem;

pub use crate::share::CONFIG_FILE;

/// The largest config.json that is read, in bytes. The agent's RPC carries no more than 4 MiB.
const MAX_CONFIG: u64 = 2 << 20;

/// A bundle that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// There is no such directory.
    #[error("bundle {}", path.display())]
    Bundle {
        /// Which directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There is no configuration in it.
    #[error("JSON specification file {} not found", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It is no JSON, or a field has the wrong type.
    #[error("{}{field}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Which field, with a colon before it, or nothing.
        field: String,
        /// What and where.
        source: serde_json::Error,
    },
    /// A field's value is wrong, or asks for what cannot be had.
    #[error("{}: {field} {reason}", path.display())]
    Field {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The root file system.
    #[error("invalid rootfs: {}", path.display())]
    Rootfs {
        /// Which path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// A bundle whose configuration was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// The configuration.
    pub spec: Spec,
    /// The root file system's directory, absolute.
    pub rootfs: PathBuf,
    /// Its part in a pod.
    pub role: Role,
    /// What its bind mounts bring in, by the place of each in the configuration.
    pub sources: Vec<Option<Source>>,
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    pub fn load(dir: &Path) -> Result<Self, SpecError> {
        let dir = dir.canonicalize().map_err(|source| SpecError::Bundle {
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join(CONFIG_FILE);
        let spec: Spec = parse(&path, &read(&path)?)?;
        let role = Role::of(&spec)
            .and_then(|role| validate::check(&spec, &role).map(|()| role))
            .map_err(|problem| problem.within(path.clone()))?;
        let sources =
            sources::find(&dir, &spec, &role).map_err(|problem| problem.within(path.clone()))?;
        if let Some(hooks) = spec.hooks() {
            hooks::check(hooks).map_err(|(field, reason)| SpecError::Field {
                path,
                field,
                reason,
            })?;
        }
        let root = spec
            .root()
            .as_ref()
            .map(|root| root.path().clone())
            .unwrap_or_default();
        let rootfs = find_rootfs(&dir.join(root))?;
        Ok(Self {
            dir,
            spec,
            rootfs,
            role,
            sources,
        })
    }

    /// A problem that was found later.
    pub fn problem(&self, problem: Problem) -> SpecError {
        problem.within(self.dir.join(CONFIG_FILE))
    }
}

impl Problem {
    fn within(self, path: PathBuf) -> SpecError {
        SpecError::Field {
            path,
            field: self.field,
            reason: self.reason,
        }
    }
}

fn read(path: &Path) -> Result<String, SpecError> {
    use std::io::Read as _;
    let unreadable = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SpecError::Missing(path.to_owned()),
        _ => unreadable(source),
    })?;
    let mut text = String::new();
    file.take(MAX_CONFIG + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_CONFIG {
        let reason = format!("it is larger than {} MiB", MAX_CONFIG >> 20);
        return Err(unreadable(io::Error::new(
            io::ErrorKind::FileTooLarge,
            reason,
        )));
    }
    Ok(text)
}

/// Reads a configuration or a process object. One that cannot be read as it is, which is rare, is
/// respelled and read again.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SpecError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let error = match serde_path_to_error::deserialize(&mut json) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    // Text that is no JSON stays so, and the first error says where that shows.
    let Ok(mut respelled) = serde_json::from_str(text) else {
        return Err(unreadable(path, error));
    };
    let unknown = spelling::correct(&mut respelled);
    let read =
        serde_path_to_error::deserialize(respelled).map_err(|error| unreadable(path, error))?;
    if !unknown.is_empty() {
        tracing::warn!("ignoring unknown capabilities: {}", unknown.join(", "));
    }
    Ok(read)
}

fn unreadable(path: &Path, error: serde_path_to_error::Error<serde_json::Error>) -> SpecError {
    let field = match error.path().to_string() {
        root if root == "." => String::new(),
        field => format!(": {field}"),
    };
    SpecError::Json {
        path: path.to_owned(),
        field,
        source: error.into_inner(),
    }
}

fn find_rootfs(path: &Path) -> Result<PathBuf, SpecError> {
    let failed = |source| SpecError::Rootfs {
        path: path.to_owned(),
        source,
    };
    let rootfs = path.canonicalize().map_err(failed)?;
    if !rootfs.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    Ok(rootfs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new(config: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("rootfs")).unwrap();
            fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
            Self(dir)
        }

        fn error(&self) -> String {
            let error = Bundle::load(self.0.path()).unwrap_err();
            match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            }
        }
    }

    fn config() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/" },
            "root": { "path": "rootfs" },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }] },
        })
    }

    /// What is said of the configuration when the value at `pointer` is replaced.
    fn error_with(pointer: &str, value: Value) -> String {
        let mut config = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.insert(key.to_owned(), value);
        Dir::new(&config.to_string()).error()
    }

    #[test]
    fn a_sound_bundle_is_loaded_with_absolute_paths() {
        let dir = Dir::new(&config().to_string());
        let bundle = Bundle::load(dir.0.path()).unwrap();
        assert!(bundle.dir.is_absolute());
        assert_eq!(bundle.rootfs, bundle.dir.join("rootfs"));
    }

    #[test]
    fn a_missing_bundle_and_a_missing_configuration_name_their_paths() {
        let message = Bundle::load(Path::new("/nonexistent"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("/nonexistent"), "{message}");
        let dir = Dir::new("");
        fs::remove_file(dir.0.path().join(CONFIG_FILE)).unwrap();
        assert!(dir.error().contains("/config.json not found"));
    }

    #[test]
    fn json_cut_short_names_the_file_and_the_place() {
        let text = config().to_string();
        let message = Dir::new(&text[..text.len() / 2]).error();
        assert!(
            message.contains("config.json") && message.contains("line 1"),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        for (pointer, value, field) in [
            ("/process/args", json!("sh"), "process.args"),
            ("/process/terminal", json!("yes"), "process.terminal"),
            (
                "/linux/namespaces",
                json!([{ "type": "moon" }]),
                "linux.namespaces[0].type",
            ),
            ("/mounts", json!([{ "type": "tmpfs" }]), "mounts[0]"),
        ] {
            let message = error_with(pointer, value);
            assert!(
                message.contains("config.json") && message.contains(field),
                "{message}"
            );
        }
    }

    #[test]
    fn wrong_values_name_the_field() {
        for (pointer, value, expected) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/ociVersion", json!("one"), "ociVersion"),
            ("/process/args", json!([]), "process.args is empty"),
            ("/process/cwd", json!("tmp"), "process.cwd"),
            ("/process", json!(null), "process is missing"),
            ("/root", json!(null), "root is missing"),
            ("/process/env", json!(["A=\0"]), "process.env[0]"),
            (
                "/linux/namespaces",
                json!([{ "type": "pid" }, { "type": "pid" }]),
                "linux.namespaces[1]",
            ),
            (
                "/linux/namespaces",
                json!([{ "type": "ipc", "path": "/proc/1/ns/ipc" }]),
                "linux.namespaces[0].path",
            ),
            (
                "/linux/namespaces",
                json!([{ "type": "pid" }]),
                "linux.namespaces has no network namespace",
            ),
        ] {
            let message = error_with(pointer, value);
            assert!(
                message.contains("config.json") && message.contains(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn a_missing_rootfs_and_one_that_is_a_file_name_the_path() {
        let message = error_with("/root/path", json!("nowhere"));
        assert!(
            message.contains("invalid rootfs: ") && message.contains("/nowhere"),
            "{message}"
        );
        let message = error_with("/root/path", json!("config.json"));
        assert!(
            message.contains("/config.json") && message.contains("not a directory"),
            "{message}"
        );
    }
}
