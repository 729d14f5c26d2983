//! config.json: reading it, checking it, and translating it for the guest.

pub(crate) mod copied;
pub(crate) mod devices;
mod disks;
mod features;
pub(crate) mod hooks;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
mod id_maps;
pub(crate) mod mounts;
mod normalize;
mod parsed;
mod pids;
pub mod pod;
pub mod process;
pub(crate) mod resources;
mod sources;
pub(crate) mod translate;
pub(crate) mod unsupported;
pub(crate) mod validate;
mod vm;
mod words;

#[cfg(test)]
mod conformance;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::{DeserializeOwned, Error as _};

use parsed::ParsedSpec;
use pod::Role;
use sources::Source;
use validate::FieldError;

use crate::config::rates::RateLimits;
use crate::disk::Stack;
use crate::sizing::Hardware;

pub use crate::share::CONFIG_FILE;
pub use features::features;

/// The version of the runtime specification whose fields rvm knows.
pub const SPEC_VERSION: &str = "1.3.0";

/// The largest config.json or process object that is read, in bytes: the guest parses it, in some
/// times its length of memory, and a small machine has not much more. The kernel takes 6 MiB of
/// arguments and environment at most.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum SpecError {
    #[error("bundle {}", path.display())]
    Bundle {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("JSON specification file {} not found", .0.display())]
    Missing(PathBuf),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}{field}", path.display())]
    Json {
        path: PathBuf,
        /// The field with a colon before it, or empty.
        field: String,
        source: serde_json::Error,
    },
    #[error("{}: {field} {reason}", path.display())]
    Field {
        path: PathBuf,
        field: String,
        reason: String,
    },
    #[error("invalid rootfs: {}", path.display())]
    Rootfs {
        path: PathBuf,
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
    /// The root file system's directory, block device or image file, absolute.
    pub rootfs: PathBuf,
    /// The disks that hold the root, with its file system mounted last, unless it is a directory,
    /// and block devices that the container uses itself.
    pub disks: Stack,
    /// Its role in a pod.
    pub role: Role,
    /// The machine that it asks for.
    pub(crate) hardware: Hardware,
    /// What it says of the rates of its machine's devices.
    pub(crate) rates: RateLimits,
    /// The source of each bind mount, by index into `spec.mounts`.
    pub(crate) sources: Vec<Option<Source>>,
}

impl Bundle {
    /// Reads and checks the bundle in `dir`.
    pub fn load(dir: &Path) -> Result<Self, SpecError> {
        Self::load_with_root(dir, Stack::default())
    }

    /// Whether the container has a terminal.
    pub fn has_terminal(&self) -> bool {
        let process = self.spec.process().as_ref();
        process.and_then(|process| process.terminal()) == Some(true)
    }

    /// Reads and checks the bundle in `dir`, whose root is on these disks, if there are any.
    pub fn load_with_root(dir: &Path, root_disks: Stack) -> Result<Self, SpecError> {
        let dir = dir.canonicalize().map_err(|source| SpecError::Bundle {
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join(CONFIG_FILE);
        let text = read(&path)?;
        let parsed = parse::<ParsedSpec>(&path, &text)?;
        let hardware = vm::hardware(&parsed).map_err(|error| error.in_file(path.clone()))?;
        let mut spec = Spec::from(parsed);
        pids::normalize(&mut spec, &text);
        let refused = |error| words::explain(error, &spec).in_file(path.clone());
        let role = Role::of(&spec)
            .and_then(|role| validate::check(&spec, &role).map(|()| role))
            .map_err(refused)?;
        if let (Role::Member(_), true) = (&role, hardware != Hardware::default()) {
            return Err(refused(validate::of_the_pods_machine("vm.hwConfig")));
        }
        let rates = rates(&spec).map_err(refused)?;
        let sources = sources::classify(&dir, &spec, &role).map_err(refused)?;
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
        let (rootfs, mut disks) = find_rootfs(&dir.join(root), root_disks)?;
        disks::add_devices(&spec, &mut disks);
        Ok(Self {
            dir,
            spec,
            rootfs,
            disks,
            role,
            hardware,
            rates,
            sources,
        })
    }

    /// How many disks the container asks for: those of its root, its devices and its mounts.
    pub(crate) fn disk_count(&self) -> usize {
        let is_disk = |source: &&Option<Source>| matches!(source, Some(Source::Disk(_)));
        self.disks.disks().len() + self.sources.iter().filter(is_disk).count()
    }

    /// An error in this bundle's config.json.
    pub(crate) fn field_error(&self, error: FieldError) -> SpecError {
        words::explain(error, &self.spec).in_file(self.dir.join(CONFIG_FILE))
    }
}

/// What the annotations say of the rates of the machine's devices. In a pod the engine may pass the
/// pod's annotations to its members, too, whose machine it is not.
fn rates(spec: &Spec) -> Result<RateLimits, FieldError> {
    let annotations = spec.annotations().as_ref();
    let value = |name: &str| annotations?.get(name).map(String::as_str);
    RateLimits::of_annotations(value).map_err(|(name, reason)| FieldError {
        field: format!("annotations[{name:?}]"),
        reason,
    })
}

impl FieldError {
    fn in_file(self, path: PathBuf) -> SpecError {
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

/// Parses a configuration or a process object from a file.
fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, SpecError> {
    from_json(text).map_err(|error| unreadable(path, error))
}

/// Parses a configuration or a process object. If that fails, which is rare, it is normalized and
/// parsed again, as text once more: a second kind of input would have a second copy of every
/// type's deserializer in the program.
fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    let error = match deserialize(text) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    // Malformed JSON cannot be normalized; the first error has the line.
    let Ok(mut normalized) = serde_json::from_str(text) else {
        return Err(error);
    };
    let unknown = normalize::normalize(&mut normalized);
    let parsed = deserialize(&normalized.to_string()).map_err(without_position)?;
    process::warn_about_unknown(&unknown);
    Ok(parsed)
}

type JsonError = serde_path_to_error::Error<serde_json::Error>;

fn deserialize<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
}

/// The position is one in the normalized text, which the user has never seen.
fn without_position(error: JsonError) -> JsonError {
    let path = error.path().clone();
    let inner = error.into_inner();
    let position = format!(" at line {} column {}", inner.line(), inner.column());
    let message = inner.to_string();
    let message = message.strip_suffix(&position).unwrap_or(&message);
    JsonError::new(path, serde_json::Error::custom(message))
}

fn unreadable(path: &Path, error: JsonError) -> SpecError {
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

/// A root that is no directory is a disk.
fn find_rootfs(path: &Path, disks: Stack) -> Result<(PathBuf, Stack), SpecError> {
    let failed = |source| SpecError::Rootfs {
        path: path.to_owned(),
        source,
    };
    let rootfs = path.canonicalize().map_err(failed)?;
    let is_directory = rootfs.metadata().map_err(failed)?.is_dir();
    let disks = match is_directory || !disks.is_empty() {
        true => disks,
        false => Stack::of_root(&rootfs).map_err(failed)?,
    };
    Ok((rootfs, disks))
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

    /// The error for the configuration with the value at `pointer` replaced.
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
    fn a_wrong_type_beside_an_unknown_capability_is_the_one_that_is_named() {
        let mut config = config();
        config["process"]["capabilities"] = json!({ "bounding": ["CAP_FLY"] });
        config["process"]["terminal"] = json!("yes");
        let message = Dir::new(&config.to_string()).error();
        assert!(message.contains("process.terminal"), "{message}");
        // A position would be one in the normalized text.
        assert!(!message.contains("line"), "{message}");
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
