//! rvm's own configuration, /etc/rvm/config.toml. Every value has a default, so the file is
//! optional.

pub mod rates;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::rates::RateLimits;

/// The configuration file unless the command line names another.
pub const DEFAULT_PATH: &str = "/etc/rvm/config.toml";

/// The configuration could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: line {line}: {reason}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("{}: {field} {reason}", path.display())]
    Value {
        path: PathBuf,
        field: &'static str,
        reason: String,
    },
}

/// An engine by name. [`crate::engine::Engine`] describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// Our VMM on KVM.
    Kvm,
    /// QEMU.
    Qemu,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        })
    }
}

impl EngineKind {
    /// Every engine, in the order in which `auto` prefers them.
    pub const ALL: [Self; 2] = [Self::Kvm, Self::Qemu];
}

/// The choice of an engine in the configuration or by `--engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum EngineChoice {
    /// The first of [`EngineKind::ALL`] that works on this host.
    #[default]
    Auto,
    /// This one, whether it works or not.
    Only(EngineKind),
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" {
            return Ok(Self::Auto);
        }
        let kind = EngineKind::ALL
            .into_iter()
            .find(|kind| kind.to_string() == name);
        kind.map(Self::Only)
            .ok_or_else(|| format!("unknown engine {name:?}: it is auto, kvm or qemu"))
    }
}

impl TryFrom<String> for EngineChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

/// Whether machines are restored from templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TemplateUse {
    /// A machine is restored from the template of its kind, which the first one makes.
    #[default]
    Auto,
    /// Every machine boots.
    Off,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    engine: EngineChoice,
    vmm: Option<PathBuf>,
    qemu: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    kernel_params: String,
    vcpus: Option<u64>,
    max_vcpus: Option<u64>,
    memory_mib: Option<u64>,
    start_timeout_seconds: Option<u64>,
    templates: TemplateUse,
    template_dir: Option<PathBuf>,
    max_templates: Option<u64>,
    map_layers: Option<bool>,
    net_rx_rate: Option<String>,
    net_tx_rate: Option<String>,
    disk_rate: Option<String>,
}

/// The configuration with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `engine`: which engine runs machines.
    pub engine: EngineChoice,
    /// The path of rvm-vmm.
    pub vmm: PathBuf,
    /// The path of qemu-system-x86_64.
    pub qemu: PathBuf,
    /// The path of the guest's kernel, a vmlinux.
    pub kernel: PathBuf,
    /// The path of the guest's initramfs, which holds the agent.
    pub initramfs: PathBuf,
    /// Parameters to append to the guest's kernel command line.
    pub kernel_params: String,
    /// vCPUs for a container without a limit.
    pub vcpus: u64,
    /// The most vCPUs that a running sandbox can be resized to.
    pub max_vcpus: u64,
    /// Memory in MiB for a container without a limit.
    pub memory_mib: u64,
    /// The time limit from the machine's start to the container's creation. None uses the engine's
    /// default.
    pub start_timeout: Option<Duration>,
    /// Whether machines are restored from templates.
    pub templates: TemplateUse,
    /// The directory that holds the templates.
    pub template_dir: PathBuf,
    /// The most templates that are kept.
    pub max_templates: u64,
    /// Whether the layers of images are mapped into the address spaces of guests.
    pub map_layers: bool,
    /// How fast a machine may use its devices.
    pub rates: RateLimits,
}

/// In MiB. The host only spends what the guest touches.
const DEFAULT_MEMORY_MIB: u64 = 512;

/// The most vCPUs for a container without a limit; each costs start-up time.
const DEFAULT_VCPUS: u64 = 4;

/// Not below /run/rvm, whose directories are containers.
const DEFAULT_TEMPLATE_DIR: &str = "/run/rvm-templates";

/// Each takes as much of the host's memory as its guest has touched, some 50 MiB.
const DEFAULT_MAX_TEMPLATES: u64 = 4;

impl Config {
    /// Reads `path`, which must exist, or [`DEFAULT_PATH`], which need not.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let prefix = installation_prefix();
        match path {
            Some(path) => Self::read(path, &prefix),
            None if Path::new(DEFAULT_PATH).exists() => Self::read(DEFAULT_PATH.as_ref(), &prefix),
            None => Self::from_file(File::default(), DEFAULT_PATH.as_ref(), &prefix),
        }
    }

    fn read(path: &Path, prefix: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_file(parse(path, &text)?, path, prefix)
    }

    fn from_file(file: File, path: &Path, prefix: &Path) -> Result<Self, ConfigError> {
        let positive = |field, value: Option<u64>, default: u64| match value {
            Some(0) => Err(ConfigError::Value {
                path: path.to_owned(),
                field,
                reason: "must be at least 1".to_owned(),
            }),
            other => Ok(other.unwrap_or(default)),
        };
        let installed =
            |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| prefix.join(default));
        let rates = RateLimits::of_keys(|key| match key {
            "net_rx_rate" => file.net_rx_rate.as_deref(),
            "net_tx_rate" => file.net_tx_rate.as_deref(),
            _ => file.disk_rate.as_deref(),
        });
        let timeout = file.start_timeout_seconds;
        let vcpus = positive("vcpus", file.vcpus, DEFAULT_VCPUS)?;
        Ok(Self {
            engine: file.engine,
            vmm: installed(file.vmm, "libexec/rvm/rvm-vmm"),
            qemu: file
                .qemu
                .unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into()),
            kernel: installed(file.kernel, "share/rvm/vmlinux"),
            initramfs: installed(file.initramfs, "share/rvm/initramfs"),
            kernel_params: file.kernel_params,
            vcpus,
            max_vcpus: positive("max_vcpus", file.max_vcpus, vcpus)?,
            memory_mib: positive("memory_mib", file.memory_mib, DEFAULT_MEMORY_MIB)?,
            start_timeout: match timeout {
                None => None,
                seconds => Some(Duration::from_secs(positive(
                    "start_timeout_seconds",
                    seconds,
                    1,
                )?)),
            },
            templates: file.templates,
            template_dir: file
                .template_dir
                .unwrap_or_else(|| DEFAULT_TEMPLATE_DIR.into()),
            max_templates: positive("max_templates", file.max_templates, DEFAULT_MAX_TEMPLATES)?,
            map_layers: file.map_layers.unwrap_or(true),
            rates: rates.map_err(|(field, reason)| ConfigError::Value {
                path: path.to_owned(),
                field,
                reason,
            })?,
        })
    }
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let failed = |field: &str, error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        ConfigError::Parse {
            path: path.to_owned(),
            line: text
                .bytes()
                .take(start)
                .filter(|byte| *byte == b'\n')
                .count()
                + 1,
            reason: format!("{field}{}", error.message().replace('\n', " ")),
        }
    };
    let toml = toml::Deserializer::parse(text).map_err(|error| failed("", &error))?;
    serde_path_to_error::deserialize(toml).map_err(|error| match error.path().to_string() {
        root if root == "." => failed("", error.inner()),
        field => failed(&format!("{field}: "), error.inner()),
    })
}

/// The prefix that rvm is installed below, from its own path `<prefix>/bin/rvm`.
fn installation_prefix() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.to_owned()))
        .unwrap_or_else(|| "/usr/local".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path, Path::new("/opt/rvm"))
    }

    #[test]
    fn an_empty_file_gives_the_defaults_below_the_prefix() {
        let config = read("").unwrap();
        assert_eq!(config.engine, EngineChoice::Auto);
        assert_eq!(config.vmm, Path::new("/opt/rvm/libexec/rvm/rvm-vmm"));
        assert_eq!(config.kernel, Path::new("/opt/rvm/share/rvm/vmlinux"));
        assert_eq!(config.memory_mib, DEFAULT_MEMORY_MIB);
        assert_eq!(config.template_dir, Path::new(DEFAULT_TEMPLATE_DIR));
    }

    #[test]
    fn the_files_values_override_the_defaults() {
        let config = read(
            "engine = \"qemu\"\nvcpus = 3\nkernel = \"/k\"\nstart_timeout_seconds = 7\n\
                 templates = \"auto\"\nmap_layers = false",
        )
        .unwrap();
        assert_eq!(config.engine, EngineChoice::Only(EngineKind::Qemu));
        assert_eq!(config.vcpus, 3);
        assert_eq!(config.kernel, Path::new("/k"));
        assert_eq!(config.start_timeout, Some(Duration::from_secs(7)));
        assert_eq!(config.templates, TemplateUse::Auto);
        assert!(!config.map_layers);
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        for (text, field) in [
            ("vcpu = 1", "vcpu"),
            ("engine = \"xen\"", "engine"),
            ("memory_mib = 0", "memory_mib"),
            ("max_templates = 0", "max_templates"),
            ("net_tx_rate = \"fast\"", "net_tx_rate"),
            ("templates = \"on\"", "templates"),
            ("\n\nvcpus = \"two\"", "line 3: vcpus: "),
            ("vcpus = 1\nvcpus", "line 2"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(
                message.contains("config.toml") && message.contains(field),
                "{message}"
            );
        }
    }

    const DOCUMENT: &str = include_str!("../../docs/configuration.md");

    #[test]
    fn every_key_is_documented() {
        // The error for an unknown key lists the known ones.
        let message = read("unknown = 1").unwrap_err().to_string();
        let (_, list) = message.split_once("expected one of").unwrap();
        let keys: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 5, "{message}");
        for key in keys {
            assert!(DOCUMENT.contains(&format!("\n| `{key}` |")), "{key}");
            assert!(DOCUMENT.contains(&format!("\n{key} = ")), "{key}");
        }
    }

    #[test]
    fn the_documents_example_is_accepted() {
        let (_, example) = DOCUMENT.split_once("```toml\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let config = read(example).unwrap();
        assert_eq!(config.kernel_params, "rvm.log=info");
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.toml"));
    }
}
