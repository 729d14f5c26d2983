//! The runtime's options, as containerd's configuration gives them: rvm's own by the generic message
//! (`ConfigPath`, or a table that becomes its configuration), and those of runc's that mean the same
//! here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci;
use protobuf::rt::WireType;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message as _};

/// The generic message, of the CRI plugin and of `ctr --runtime-config-path`.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// runc's, of clients that always send them.
const RUNC: &str = "containerd.runc.v1.Options";

/// Where a configuration that came as text is put, in the bundle.
const CONFIG_FILE: &str = "rvm.toml";

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message.
    #[error("the runtime's options of type {kind} cannot be read")]
    Decode {
        /// Its type.
        kind: String,
        /// The reason.
        #[source]
        source: protobuf::Error,
    },
    /// Of another runtime.
    #[error("the runtime's options are of type {0}; rvm takes {GENERIC} with ConfigPath")]
    Unknown(String),
    /// An option that cannot be honoured.
    #[error("the runtime's option {0}")]
    Unfit(String),
    /// The configuration.
    #[error("cannot write rvm's configuration to {}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// What was asked for. Everything has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// rvm's configuration file.
    pub config_path: Option<PathBuf>,
    /// Its contents, if it is none.
    pub config_text: Option<String>,
    /// The directory for the state of containers.
    pub root: Option<PathBuf>,
    /// A cgroup for the shim.
    pub shim_cgroup: Option<String>,
}

impl Options {
    /// Reads the message. An empty one asks for nothing.
    pub fn parse(any: &Any) -> Result<Self, OptionsError> {
        let kind = any.type_url.rsplit('/').next().unwrap_or_default();
        let parsed = match kind {
            "" => return Ok(Self::default()),
            GENERIC => Self::generic(&any.value),
            kind if kind.ends_with(RUNC) => match oci::Options::parse_from_bytes(&any.value) {
                Ok(options) => return Self::runc(&options),
                Err(error) => Err(error),
            },
            _ => return Err(OptionsError::Unknown(any.type_url.clone())),
        };
        parsed.map_err(|source| OptionsError::Decode {
            kind: any.type_url.clone(),
            source,
        })
    }

    /// The first of several messages that is one of options.
    pub fn find<'a>(mut messages: impl Iterator<Item = &'a Any>) -> Result<Self, OptionsError> {
        let is_options = |any: &&Any| any.type_url.ends_with(".Options");
        match messages.find(is_options) {
            Some(any) => Self::parse(any),
            None => Ok(Self::default()),
        }
    }

    /// `type_url`, `config_path` and `config_body`.
    fn generic(bytes: &[u8]) -> protobuf::Result<Self> {
        let mut options = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            let wire = WireType::new(tag & 7).ok_or_else(|| invalid("a wire type"))?;
            match tag >> 3 {
                2 => options.config_path = some(input.read_string()?).map(PathBuf::from),
                3 => {
                    let text = String::from_utf8(input.read_bytes()?);
                    options.config_text = some(text.map_err(|_| invalid("config_body"))?);
                }
                _ => input.skip_field(wire)?,
            }
        }
        Ok(options)
    }

    fn runc(options: &oci::Options) -> Result<Self, OptionsError> {
        let name = Path::new(&options.binary_name).file_name();
        if let Some(name) = name.filter(|name| *name != "rvm") {
            return Err(OptionsError::Unfit(format!(
                "BinaryName is {:?}, which is another runtime; leave it away",
                name.to_string_lossy()
            )));
        }
        Ok(Self {
            root: some(options.root.clone()).map(PathBuf::from),
            shim_cgroup: some(options.shim_cgroup.clone()),
            ..Self::default()
        })
    }

    /// rvm's configuration file, which is made in the bundle if the configuration came as text.
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

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn invalid(what: &str) -> protobuf::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned()).into()
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
        });
        let options = options.unwrap();
        assert_eq!(options.root, Some("/run/x".into()));
        assert_eq!(options.shim_cgroup.as_deref(), Some("/shims"));
        let other = runc(|options| options.binary_name = "/usr/bin/crun".to_owned());
        assert!(other.unwrap_err().to_string().contains("crun"));
        assert!(runc(|options| options.binary_name = "/usr/bin/rvm".to_owned()).is_ok());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Options::parse(&any("windows.v1.Options", b"")).unwrap_err();
        assert!(error.to_string().contains("windows.v1.Options"));
        assert!(Options::parse(&any(GENERIC, b"\x12\xff")).is_err());
    }
}
