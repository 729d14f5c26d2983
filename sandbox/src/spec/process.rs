//! The process object of `rvm exec`: from a file, or the container's own with overrides. The rules
//! are runc's.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};
use serde::de::Error as _;

use super::parsed::{ParsedProcess, ParsedSpec};
use super::validate;
use super::{Bundle, CONFIG_FILE, SpecError, parse, read};

/// The fields that differ from those of the container's own process.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Replaces the program and its arguments.
    pub args: Vec<String>,
    /// Replaces the working directory.
    pub cwd: Option<PathBuf>,
    /// Appended to the environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Replaces `terminal`, whatever the container's own process has.
    pub terminal: bool,
    /// Replaces the uid, and the gid if there is one.
    pub user: Option<(u32, Option<u32>)>,
    /// Appended to the supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Added to the capability sets.
    pub capabilities: Vec<Capability>,
    /// Replaces `noNewPrivileges`.
    pub no_new_privileges: Option<bool>,
    /// Replaces the AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Replaces the SELinux label.
    pub selinux_label: Option<String>,
}

/// Reads a process object from a file.
pub fn from_file(path: &Path) -> Result<Process, SpecError> {
    let process = parse::<ParsedProcess>(path, &read(path)?)?;
    checked(path, process.into())
}

/// Parses a process object that a client of the shim sends. What [`from_file`] leaves out with a
/// warning is left out here, too.
pub fn from_json(text: &[u8]) -> Result<Process, serde_json::Error> {
    let process = from_checked_json(text)?;
    warn_about_ambient(&process);
    Ok(process)
}

/// Parses a process object that one of rvm's own processes has read and checked before.
pub fn from_checked_json(text: &[u8]) -> Result<Process, serde_json::Error> {
    let text = std::str::from_utf8(text).map_err(serde_json::Error::custom)?;
    let parsed = super::from_json::<ParsedProcess>(text).map_err(|error| error.into_inner())?;
    Ok(parsed.into())
}

/// Reads the process of the configuration in a bundle's directory, and applies overrides.
pub fn from_bundle(dir: &Path, overrides: Overrides) -> Result<Process, SpecError> {
    let path = dir.join(CONFIG_FILE);
    let spec = Spec::from(parse::<ParsedSpec>(&path, &read(&path)?)?);
    let process = spec
        .process()
        .clone()
        .ok_or_else(|| field(&path, "process", "is missing"))?;
    checked(&path, overrides.apply(process))
}

fn checked(path: &Path, process: Process) -> Result<Process, SpecError> {
    match validate::process(&process) {
        Ok(()) => {
            warn_about_ambient(&process);
            Ok(process)
        }
        Err(error) => Err(field(path, error.field, error.reason)),
    }
}

/// Logs the ambient capabilities that the process will not have, in runc's words.
pub fn warn_about_ambient(process: &Process) {
    for capability in never_ambient(process) {
        tracing::warn!("can't raise ambient capability {capability}: operation not permitted");
    }
}

/// The ambient capabilities that the kernel refuses: those that are not both permitted and
/// inheritable (capabilities(7)). The agent leaves them out.
fn never_ambient(process: &Process) -> Vec<String> {
    let Some(sets) = process.capabilities() else {
        return Vec::new();
    };
    let has = |set: &Option<Capabilities>, capability: &Capability| {
        set.as_ref().is_some_and(|set| set.contains(capability))
    };
    let refused = |capability: &&Capability| {
        !has(sets.permitted(), capability) || !has(sets.inheritable(), capability)
    };
    let ambient = sets.ambient().iter().flatten();
    let mut names: Vec<String> = ambient
        .filter(refused)
        .map(|name| format!("CAP_{name}"))
        .collect();
    names.sort();
    names
}

fn field(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> SpecError {
    SpecError::Field {
        path: path.to_owned(),
        field: field.into(),
        reason: reason.into(),
    }
}

impl Overrides {
    fn apply(self, mut process: Process) -> Process {
        process.set_args(Some(self.args));
        process.set_terminal(Some(self.terminal));
        if let Some(cwd) = self.cwd {
            process.set_cwd(cwd);
        }
        let env = process.env_mut().get_or_insert_default();
        env.extend(self.env);
        if let Some((uid, gid)) = self.user {
            process.user_mut().set_uid(uid);
            if let Some(gid) = gid {
                process.user_mut().set_gid(gid);
            }
        }
        if !self.additional_gids.is_empty() {
            let gids = process.user_mut().additional_gids_mut();
            gids.get_or_insert_default().extend(self.additional_gids);
        }
        if !self.capabilities.is_empty() {
            let sets = with_capabilities(process.capabilities().as_ref(), &self.capabilities);
            process.set_capabilities(Some(sets));
        }
        if self.no_new_privileges.is_some() {
            process.set_no_new_privileges(self.no_new_privileges);
        }
        if self.apparmor_profile.is_some() {
            process.set_apparmor_profile(self.apparmor_profile);
        }
        if self.selinux_label.is_some() {
            process.set_selinux_label(self.selinux_label);
        }
        process
    }
}

/// Adds capabilities to all sets but the inheritable one. An ambient capability must be
/// inheritable, so they become ambient only if the container has inheritable ones of its own.
fn with_capabilities(own: Option<&LinuxCapabilities>, more: &[Capability]) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        own.and_then(|own| of(own).clone()).unwrap_or_default()
    };
    let with = |mut set: Capabilities| {
        set.extend(more);
        Some(set)
    };
    let inheritable = own.and_then(|own| own.inheritable().clone());
    let ambient = set(LinuxCapabilities::ambient);
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(with(set(LinuxCapabilities::bounding)));
    sets.set_effective(with(set(LinuxCapabilities::effective)));
    sets.set_permitted(with(set(LinuxCapabilities::permitted)));
    sets.set_ambient(match inheritable {
        Some(_) => with(ambient),
        None => Some(ambient),
    });
    sets.set_inheritable(inheritable);
    sets
}

/// Sets LISTEN_FDS and LISTEN_PID for a container that inherits `count` descriptors; see
/// sd_listen_fds(3).
pub fn set_listen_fds(bundle: &mut Bundle, count: u32) {
    if count > 0
        && let Some(process) = bundle.spec.process_mut()
    {
        let env = process.env_mut().get_or_insert_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
    }
}

/// Logs the capabilities that have been left out.
pub(super) fn warn_about_unknown(capabilities: &[String]) {
    if !capabilities.is_empty() {
        tracing::warn!("ignoring unknown capabilities: {}", capabilities.join(", "));
    }
}

/// The capabilities of these names. An unknown name is logged and left out, as one in config.json
/// is.
pub fn known_capabilities(names: &[String]) -> Vec<Capability> {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        match capability(name) {
            Some(capability) => known.push(capability),
            None => unknown.push(name.clone()),
        }
    }
    warn_about_unknown(&unknown);
    known
}

/// Parses the name of a capability, with or without CAP_, in any case.
fn capability(name: &str) -> Option<Capability> {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own(extra: serde_json::Value) -> Process {
        let mut process = json!({
            "terminal": true, "args": ["init"], "cwd": "/srv", "env": ["PATH=/bin"],
            "user": { "uid": 1, "gid": 2, "additionalGids": [3] },
        });
        let extra = extra.as_object().unwrap().clone();
        process.as_object_mut().unwrap().extend(extra);
        serde_json::from_value(process).unwrap()
    }

    fn overridden(overrides: Overrides) -> Process {
        let args = vec!["sh".to_owned()];
        Overrides { args, ..overrides }.apply(own(json!({})))
    }

    #[test]
    fn fields_without_overrides_are_the_containers() {
        let process = overridden(Overrides::default());
        assert_eq!(process.args().as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert_eq!((process.user().uid(), process.user().gid()), (1, 2));
        assert_eq!(
            process.terminal(),
            Some(false),
            "a terminal is asked for anew"
        );
    }

    #[test]
    fn environment_and_groups_are_added() {
        let process = overridden(Overrides {
            env: vec!["A=1".to_owned()],
            additional_gids: vec![9],
            user: Some((7, None)),
            ..Overrides::default()
        });
        assert_eq!(process.env().clone().unwrap(), ["PATH=/bin", "A=1"]);
        let user = process.user();
        assert_eq!((user.uid(), user.gid()), (7, 2));
        assert_eq!(user.additional_gids().clone().unwrap(), [3, 9]);
    }

    #[test]
    fn a_capability_is_ambient_only_beside_inheritable_ones() {
        let more = [Capability::NetAdmin];
        let overrides = || Overrides {
            capabilities: more.to_vec(),
            ..Overrides::default()
        };
        let sets = |extra| {
            let process = overrides().apply(own(json!({ "capabilities": extra })));
            process.capabilities().clone().unwrap()
        };
        let plain = sets(json!({ "bounding": ["CAP_KILL"] }));
        assert_eq!(plain.bounding().as_ref().unwrap().len(), 2);
        assert!(plain.ambient().as_ref().unwrap().is_empty());
        assert_eq!(plain.inheritable(), &None);
        let inheriting = sets(json!({ "inheritable": ["CAP_KILL"] }));
        assert!(inheriting.ambient().as_ref().unwrap().contains(&more[0]));
        assert_eq!(inheriting.inheritable().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn a_process_that_a_client_sends_may_have_capabilities_of_newer_kernels() {
        let sent = |capability: &str| {
            let sets = json!({ "bounding": [capability, "CAP_KILL"] });
            let process = json!({ "args": ["sh"], "cwd": "/", "capabilities": sets });
            from_json(process.to_string().as_bytes())
        };
        let bounding = |process: Process| {
            let sets = process.capabilities().clone().unwrap();
            sets.bounding().clone().unwrap().len()
        };
        assert_eq!(bounding(sent("CAP_CHOWN").unwrap()), 2);
        assert_eq!(bounding(sent("CAP_FLY").unwrap()), 1);
        assert!(from_json(b"{\"args\": 1}").is_err());
    }

    #[test]
    fn an_ambient_capability_that_is_not_permitted_and_inheritable_is_warned_of() {
        let refused = |sets| never_ambient(&own(json!({ "capabilities": sets })));
        let kill_and_chown = ["CAP_KILL", "CAP_CHOWN"];
        assert_eq!(
            refused(json!({
                "permitted": kill_and_chown, "inheritable": ["CAP_KILL"],
                "ambient": kill_and_chown,
            })),
            ["CAP_CHOWN"]
        );
        assert_eq!(
            refused(json!({ "inheritable": kill_and_chown, "ambient": ["CAP_KILL"] })),
            ["CAP_KILL"]
        );
        assert!(never_ambient(&own(json!({}))).is_empty());
    }

    #[test]
    fn capabilities_have_many_spellings() {
        for name in ["CAP_NET_ADMIN", "net_admin", "NET_ADMIN"] {
            assert_eq!(capability(name), Some(Capability::NetAdmin), "{name}");
        }
        assert_eq!(capability("CAP_FLY"), None);
    }

    #[test]
    fn an_unknown_capability_is_left_out() {
        let names = ["CAP_KILL", "CAP_FLY", "chown"].map(String::from);
        assert_eq!(
            known_capabilities(&names),
            [Capability::Kill, Capability::Chown]
        );
    }

    #[test]
    fn a_file_that_is_wrong_is_named_with_the_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        let written = |text: &str| {
            std::fs::write(&path, text).unwrap();
            from_file(&path).unwrap_err().to_string()
        };
        let message = written(r#"{"args":["sh"],"cwd":"tmp","user":{}}"#);
        assert!(message.contains("process.json: process.cwd"), "{message}");
        let message = written(r#"{"args":"sh","cwd":"/","user":{}}"#);
        assert!(message.contains("process.json: args"), "{message}");
    }
}
