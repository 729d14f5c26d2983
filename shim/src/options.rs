//! The runtime's options from containerd's configuration: rvm's own in the generic message
//! (`ConfigPath`, or a table that becomes rvm's configuration), and those of runc's options that
//! mean the same for rvm. And the options of a checkpoint.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::messages::{runctypes, runtimeoptions};

/// The generic message's type; see `proto/runtimeoptions.proto`.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// The type of runc's options, which some clients send to every runtime.
const RUNC: &str = "containerd.runc.v1.Options";

/// The types of runc's options of a task and of a runtime, which clients of containerd 1.6 and
/// earlier send to every runtime but containerd's own.
const OLD_TASK: &str = "containerd.linux.runc.CreateOptions";
const OLD_RUNTIME: &str = "containerd.linux.runc.RuncOptions";

/// The types of a checkpoint's options, today's and the one before, whose fields have the same
/// numbers.
const CHECKPOINT: &str = "containerd.runc.v1.CheckpointOptions";
const OLD_CHECKPOINT: &str = "containerd.linux.runc.CheckpointOptions";

/// CRIU's modes.
const CGROUPS_MODES: [&str; 5] = ["", "soft", "full", "strict", "ignore"];

/// The file in the bundle that receives a configuration sent as text.
const CONFIG_FILE: &str = "rvm.toml";

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("cannot decode the runtime's options of type {kind}")]
    Decode {
        kind: String,
        source: protobuf::Error,
    },
    #[error("the runtime's options are of type {0}; rvm takes {GENERIC} with ConfigPath")]
    UnknownType(String),
    #[error("the runtime's option {option} is {path:?}, which is another runtime; leave it out")]
    OtherRuntime { option: &'static str, path: PathBuf },
    #[error("the checkpoint's options are of type {0}; rvm takes {CHECKPOINT}")]
    UnknownCheckpointType(String),
    #[error(
        "the checkpoint's option cgroups_mode is {0:?}; it may be soft, full, strict or ignore"
    )]
    CgroupsMode(String),
    #[error("the request names no directory for the checkpoint")]
    NoPath,
    #[error("cannot write rvm's configuration to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Every option has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// rvm's configuration file.
    pub config_path: Option<PathBuf>,
    /// rvm's configuration itself, which counts if there is no `config_path`.
    pub config_text: Option<String>,
    /// The directory of the state of containers.
    pub root: Option<PathBuf>,
    /// The cgroup that the daemon joins.
    pub shim_cgroup: Option<String>,
    /// The checkpoint that a container goes on from, if the request for it names none.
    pub image_path: Option<PathBuf>,
}

impl Options {
    /// Decodes the message; one without a type asks for the defaults.
    pub fn parse(any: &Any) -> Result<Self, OptionsError> {
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        match kind {
            "" => Ok(Self::default()),
            GENERIC => Ok(Self::generic(decode(any)?)),
            RUNC => Self::runc(decode(any)?),
            OLD_RUNTIME => Self::old_runtime(decode(any)?),
            OLD_TASK => Ok(Self::old_task(decode(any)?)),
            _ => Err(OptionsError::UnknownType(any.type_url.clone())),
        }
    }

    /// Decodes the first of several messages whose type is one of options.
    pub fn find<'a>(mut messages: impl Iterator<Item = &'a Any>) -> Result<Self, OptionsError> {
        let is_options = |any: &&Any| any.type_url.ends_with("Options");
        match messages.find(is_options) {
            Some(any) => Self::parse(any),
            None => Ok(Self::default()),
        }
    }

    fn generic(options: runtimeoptions::Options) -> Self {
        Self {
            config_path: non_empty(options.config_path).map(PathBuf::from),
            config_text: non_empty(options.config_body),
            ..Self::default()
        }
    }

    fn runc(options: oci::Options) -> Result<Self, OptionsError> {
        check_binary("BinaryName", &options.binary_name)?;
        Ok(Self {
            root: non_empty(options.root).map(PathBuf::from),
            shim_cgroup: non_empty(options.shim_cgroup),
            image_path: non_empty(options.criu_image_path).map(PathBuf::from),
            ..Self::default()
        })
    }

    fn old_runtime(options: runctypes::RuncOptions) -> Result<Self, OptionsError> {
        check_binary("Runtime", &options.runtime)?;
        Ok(Self {
            root: non_empty(options.runtime_root).map(PathBuf::from),
            ..Self::default()
        })
    }

    fn old_task(options: runctypes::CreateOptions) -> Self {
        Self {
            shim_cgroup: non_empty(options.shim_cgroup),
            ..Self::default()
        }
    }

    /// The path of rvm's configuration file. A configuration sent as text is written into the
    /// bundle first.
    pub fn config_file(&self, bundle: &Path) -> Result<Option<PathBuf>, OptionsError> {
        if self.config_path.is_some() {
            return Ok(self.config_path.clone());
        }
        let Some(text) = &self.config_text else {
            return Ok(None);
        };
        let path = std::path::absolute(bundle)
            .unwrap_or_else(|_| bundle.to_owned())
            .join(CONFIG_FILE);
        match fs::write(&path, text) {
            Ok(()) => Ok(Some(path)),
            Err(source) => Err(OptionsError::Write { path, source }),
        }
    }
}

/// What is to be done for a checkpoint. The rest of its options are for CRIU: what they allow, such
/// as connections, terminals and locks, a machine always has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// Whether the container ends with it.
    pub exit: bool,
}

impl Checkpoint {
    /// Decodes the request's options; without a type they are the defaults. A client's image path
    /// goes before `path`, which is containerd's own directory.
    pub fn parse(path: &str, any: &Any) -> Result<Self, OptionsError> {
        let options: oci::CheckpointOptions =
            match any.type_url.rsplit('/').next().unwrap_or_default() {
                "" => oci::CheckpointOptions::default(),
                CHECKPOINT | OLD_CHECKPOINT => decode(any)?,
                _ => return Err(OptionsError::UnknownCheckpointType(any.type_url.clone())),
            };
        if !CGROUPS_MODES.contains(&options.cgroups_mode.as_str()) {
            return Err(OptionsError::CgroupsMode(options.cgroups_mode));
        }
        let dir = non_empty(options.image_path).unwrap_or_else(|| path.to_owned());
        Ok(Self {
            dir: std::path::absolute(dir).map_err(|_| OptionsError::NoPath)?,
            exit: options.exit,
        })
    }
}

/// Refuses the path of a runtime other than rvm.
fn check_binary(option: &'static str, path: &str) -> Result<(), OptionsError> {
    let path = Path::new(path);
    match path.file_name() {
        Some(name) if name != "rvm" => Err(OptionsError::OtherRuntime {
            option,
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn decode<M: Message>(any: &Any) -> Result<M, OptionsError> {
    M::parse_from_bytes(&any.value).map_err(|source| OptionsError::Decode {
        kind: any.type_url.clone(),
        source,
    })
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: &str, value: &[u8]) -> Any {
        Any {
            type_url: kind.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn no_options_ask_for_nothing() {
        assert_eq!(Options::parse(&any("", b"")).unwrap(), Options::default());
    }

    #[test]
    fn the_generic_options_name_the_configuration() {
        let message = b"\x0a\x01x\x12\x06/c/rvm\x1a\x08vcpus=1\n";
        let options = Options::parse(&any(GENERIC, message)).unwrap();
        assert_eq!(options.config_path, Some("/c/rvm".into()));
        assert_eq!(options.config_text.as_deref(), Some("vcpus=1\n"));
        assert_eq!(
            options.config_file(Path::new("/nonexistent")).unwrap(),
            Some("/c/rvm".into()),
            "a path goes before text"
        );
    }

    #[test]
    fn fields_of_later_versions_are_skipped() {
        let message = b"\x12\x06/c/rvm\xfa\x06\x03new";
        let options = Options::parse(&any(GENERIC, message)).unwrap();
        assert_eq!(options.config_path, Some("/c/rvm".into()));
    }

    #[test]
    fn a_configuration_that_came_as_text_becomes_a_file_in_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        let options = Options {
            config_text: Some("vcpus = 2\n".to_owned()),
            ..Default::default()
        };
        let path = options.config_file(bundle.path()).unwrap().unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "vcpus = 2\n");
    }

    #[test]
    fn of_runcs_options_those_that_mean_the_same_are_taken() {
        let runc = |change: fn(&mut oci::Options)| {
            let mut options = oci::Options::new();
            change(&mut options);
            let bytes = options.write_to_bytes().unwrap();
            Options::parse(&any("containerd.runc.v1.Options", &bytes))
        };
        let options = runc(|options| {
            options.root = "/run/x".to_owned();
            options.shim_cgroup = "/shims".to_owned();
            options.systemd_cgroup = true;
            options.criu_image_path = "/images/1".to_owned();
        });
        let options = options.unwrap();
        assert_eq!(options.root, Some("/run/x".into()));
        assert_eq!(options.shim_cgroup.as_deref(), Some("/shims"));
        assert_eq!(options.image_path, Some("/images/1".into()));
        let other = runc(|options| options.binary_name = "/usr/bin/crun".to_owned());
        assert!(other.unwrap_err().to_string().contains("crun"));
        assert!(runc(|options| options.binary_name = "/usr/bin/rvm".to_owned()).is_ok());
    }

    #[test]
    fn the_options_that_clients_of_containerd_1_6_send_are_taken() {
        let task = b"\x08\x01\x4a\x06/shims\x50\x07";
        let kind = "containerd.linux.runc.CreateOptions";
        let options = Options::parse(&any(kind, task)).unwrap();
        assert_eq!(options.shim_cgroup.as_deref(), Some("/shims"));
        let found = Options::find([&any("x.Other", b""), &any(kind, task)].into_iter());
        assert_eq!(found.unwrap(), options);
        let kind = "containerd.linux.runc.RuncOptions";
        let runtime = Options::parse(&any(kind, b"\x12\x06/run/x")).unwrap();
        assert_eq!(runtime.root, Some("/run/x".into()));
        let other = Options::parse(&any(kind, b"\x0a\x09/bin/runc"));
        assert!(other.unwrap_err().to_string().contains("Runtime"));
    }

    #[test]
    fn a_checkpoint_goes_where_the_client_says_and_leaves_the_container_running_by_default() {
        let parse = |change: fn(&mut oci::CheckpointOptions)| {
            let mut options = oci::CheckpointOptions::new();
            change(&mut options);
            let bytes = options.write_to_bytes().unwrap();
            [CHECKPOINT, OLD_CHECKPOINT].map(|kind| Checkpoint::parse("/tmp/c", &any(kind, &bytes)))
        };
        let checkpoint = |dir: &str, exit| Checkpoint {
            dir: dir.into(),
            exit,
        };
        let none = Checkpoint::parse("/tmp/c", &Any::default()).unwrap();
        assert_eq!(none, checkpoint("/tmp/c", false));
        for parsed in parse(|options| {
            options.exit = true;
            options.file_locks = true;
            options.cgroups_mode = "soft".to_owned();
        }) {
            assert_eq!(parsed.unwrap(), checkpoint("/tmp/c", true));
        }
        for parsed in parse(|options| options.image_path = "/images/1".to_owned()) {
            assert_eq!(parsed.unwrap(), checkpoint("/images/1", false));
        }
        for refused in parse(|options| options.cgroups_mode = "hard".to_owned()) {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("cgroups_mode is \"hard\""), "{refused}");
        }
        let refused = Checkpoint::parse("", &Any::default()).unwrap_err();
        assert!(refused.to_string().contains("directory"), "{refused}");
        let refused = Checkpoint::parse("/c", &any("x.Other", b"")).unwrap_err();
        assert!(refused.to_string().contains("x.Other"), "{refused}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Options::parse(&any("windows.v1.Options", b"")).unwrap_err();
        assert!(error.to_string().contains("windows.v1.Options"));
        assert!(Options::parse(&any(GENERIC, b"\x12\xff")).is_err());
    }
}
