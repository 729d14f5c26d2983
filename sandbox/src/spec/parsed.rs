//! config.json and its process object as they are parsed, before they become oci-spec's types.
//!
//! oci-spec's own `Process`, and so its `Spec`, check `execCPUAffinity` with a regular expression
//! when they are deserialized. The crate for those would make every program that parses one 1.3 MiB
//! larger, so these two types mirror them, and the check is a few lines.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Box as ConsoleSize, ExecCPUAffinity, Hooks, Linux, LinuxCapabilities, LinuxIOPriority, Mount,
    PosixRlimit, Process, Root, Scheduler, Solaris, Spec, User, Windows, ZOS,
};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, de};

use super::vm::ParsedVm;

/// Mirrors [`Spec`], without two fields that the specification has never had, and with what it has
/// newly: `vm` whole, and `freebsd`, which only has to be noticed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ParsedSpec {
    #[serde(default, rename = "ociVersion")]
    version: String,
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    process: Option<ParsedProcess>,
    hostname: Option<String>,
    domainname: Option<String>,
    hooks: Option<Hooks>,
    annotations: Option<HashMap<String, String>>,
    linux: Option<Linux>,
    solaris: Option<Solaris>,
    windows: Option<Windows>,
    #[serde(default)]
    pub(super) vm: Option<ParsedVm>,
    freebsd: Option<IgnoredAny>,
    zos: Option<ZOS>,
}

/// Mirrors [`Process`], with a `user` that may be absent, as in the specification's schema: then it
/// is root.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ParsedProcess {
    terminal: Option<bool>,
    console_size: Option<ConsoleSize>,
    #[serde(default)]
    user: User,
    args: Option<Vec<String>>,
    command_line: Option<String>,
    env: Option<Vec<String>>,
    cwd: PathBuf,
    capabilities: Option<LinuxCapabilities>,
    rlimits: Option<Vec<PosixRlimit>>,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    oom_score_adj: Option<i32>,
    selinux_label: Option<String>,
    io_priority: Option<LinuxIOPriority>,
    scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<ParsedAffinity>,
}

/// Mirrors [`ExecCPUAffinity`].
#[derive(Debug, Deserialize)]
struct ParsedAffinity {
    #[serde(default, deserialize_with = "cpu_list")]
    initial: Option<String>,
    #[serde(default, rename = "final", deserialize_with = "cpu_list")]
    last: Option<String>,
}

fn cpu_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let list = Option::<String>::deserialize(deserializer)?;
    match list.as_deref().filter(|list| !is_cpu_list(list)) {
        Some(list) => Err(de::Error::custom(format!(
            "Invalid execCPUAffinity format: {list}"
        ))),
        None => Ok(list),
    }
}

/// Numbers and ranges of them, such as `0-3,7`, without blanks.
fn is_cpu_list(list: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    list.split(',').all(|range| match range.split_once('-') {
        Some((first, last)) => is_number(first) && is_number(last),
        None => is_number(range),
    })
}

impl ParsedSpec {
    pub(super) fn is_for_freebsd(&self) -> bool {
        self.freebsd.is_some()
    }
}

impl From<ParsedSpec> for Spec {
    fn from(parsed: ParsedSpec) -> Self {
        let mut spec = Self::default();
        spec.set_version(parsed.version)
            .set_root(parsed.root)
            .set_mounts(parsed.mounts)
            .set_process(parsed.process.map(Process::from))
            .set_hostname(parsed.hostname)
            .set_domainname(parsed.domainname)
            .set_hooks(parsed.hooks)
            .set_annotations(parsed.annotations)
            .set_linux(parsed.linux)
            .set_solaris(parsed.solaris)
            .set_windows(parsed.windows)
            .set_zos(parsed.zos);
        spec
    }
}

impl From<ParsedProcess> for Process {
    fn from(parsed: ParsedProcess) -> Self {
        let mut process = Self::default();
        process
            .set_terminal(parsed.terminal)
            .set_console_size(parsed.console_size)
            .set_user(parsed.user)
            .set_args(parsed.args)
            .set_command_line(parsed.command_line)
            .set_env(parsed.env)
            .set_cwd(parsed.cwd)
            .set_capabilities(parsed.capabilities)
            .set_rlimits(parsed.rlimits)
            .set_no_new_privileges(parsed.no_new_privileges)
            .set_apparmor_profile(parsed.apparmor_profile)
            .set_oom_score_adj(parsed.oom_score_adj)
            .set_selinux_label(parsed.selinux_label)
            .set_io_priority(parsed.io_priority)
            .set_scheduler(parsed.scheduler)
            .set_exec_cpu_affinity(parsed.exec_cpu_affinity.map(ExecCPUAffinity::from));
        process
    }
}

impl From<ParsedAffinity> for ExecCPUAffinity {
    fn from(parsed: ParsedAffinity) -> Self {
        let mut affinity = Self::default();
        affinity
            .set_initial(parsed.initial)
            .set_cpu_affinity_final(parsed.last);
        affinity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn both(config: Value) -> (Result<Spec, String>, Result<Spec, String>) {
        let theirs = serde_json::from_value(config.clone());
        let ours = serde_json::from_value::<ParsedSpec>(config).map(Spec::from);
        let text = |error: serde_json::Error| error.to_string();
        (ours.map_err(text), theirs.map_err(text))
    }

    #[test]
    fn a_configuration_is_what_oci_spec_parses() {
        let (ours, theirs) = both(json!({
            "ociVersion": "1.2.0", "root": { "path": "rootfs", "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "process": {
                "terminal": true, "consoleSize": { "height": 25, "width": 80 },
                "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3] },
                "args": ["sh"], "commandLine": "sh", "env": ["A=1"], "cwd": "/",
                "capabilities": { "bounding": ["CAP_KILL"] },
                "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }],
                "noNewPrivileges": true, "apparmorProfile": "a", "oomScoreAdj": 7,
                "selinuxLabel": "s",
                "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
                "scheduler": { "policy": "SCHED_BATCH", "nice": 1 },
                "execCPUAffinity": { "initial": "0", "final": "0-3,7" },
            },
            "hostname": "host", "domainname": "domain",
            "hooks": { "poststop": [{ "path": "/bin/true" }] },
            "annotations": { "key": "value" },
            "linux": { "namespaces": [{ "type": "pid" }] },
            "windows": { "layerFolders": [] }, "solaris": {}, "zos": {},
        }));
        assert!(ours.is_ok());
        assert_eq!(ours, theirs);
        let (ours, theirs) = both(json!({}));
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_process_without_a_user_is_roots() {
        let config = json!({ "process": { "args": ["sh"], "cwd": "/" } });
        let with_user = json!({ "process": { "args": ["sh"], "cwd": "/", "user": {} } });
        let (ours, _) = both(config);
        let (with_user, _) = both(with_user);
        assert_eq!(ours, with_user);
        let process = ours.unwrap().process().clone().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    }

    #[test]
    fn a_list_of_cpus_is_one_where_oci_spec_has_it_for_one() {
        for list in [
            "0", "0-3,7", "3-1", "", ",", "1,", "-1", "1-", "a", "0-3, 7", "1-2-3",
        ] {
            let affinity = json!({ "initial": list });
            let process = json!({ "user": {}, "cwd": "/", "execCPUAffinity": affinity });
            let (ours, theirs) = both(json!({ "process": process }));
            assert_eq!(ours, theirs, "{list:?}");
        }
    }
}
