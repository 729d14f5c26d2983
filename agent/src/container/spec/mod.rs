//! Translates config.json to a plan. Pure: nothing here depends on the machine.
//!
//! A field that the guest cannot honour is refused by its name. Two kinds of fields are ignored:
//! the labels of security modules that the guest's kernel does not have, with a log line, and the
//! hooks that run on the host.

mod config;
mod devices;
mod mounts;
mod namespaces;
mod process;

use std::collections::BTreeMap;

use oci_spec::runtime::{Hook, Linux, LinuxResources, LinuxSeccomp};

pub use mounts::IdMap;
pub use namespaces::{Namespaces, UserNamespace};
pub use process::exec_process;

use crate::init::plan::{ContainerPlan, HookPlan, HookState, ProcessPlan};
use config::Config;

/// Why config.json, or an exec's process object, is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("config.json: {0}")]
    Malformed(String),
    /// `process.args` `is empty`.
    #[error("config.json: {field} {problem}")]
    Invalid { field: String, problem: String },
    #[error("config.json: {0} is not supported in the guest")]
    Unsupported(String),
}

impl SpecError {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn unsupported(field: impl Into<String>) -> Self {
        Self::Unsupported(field.into())
    }
}

/// A container to make: the plan of its init process, and what the agent does itself.
#[derive(Debug)]
pub struct ContainerSpec {
    pub container: ContainerPlan,
    pub process: ProcessPlan,
    pub namespaces: Namespaces,
    /// The user namespaces by which mounts map ids, in the order of their indices.
    pub idmaps: Vec<IdMap>,
    /// Settings of the guest's own network, which the init process may have no right to change.
    pub guest_sysctls: BTreeMap<String, String>,
    pub resources: Option<LinuxResources>,
    pub seccomp: Option<LinuxSeccomp>,
    pub oom_score_adj: i32,
}

/// Reads and validates config.json for a container.
pub fn translate(id: &str, json: &[u8]) -> Result<ContainerSpec, SpecError> {
    let config: Config =
        serde_json::from_slice(json).map_err(|error| SpecError::Malformed(error.to_string()))?;
    refuse_other_platforms(&config)?;
    let missing = |field: &str| SpecError::invalid(field, "is missing");
    let process = config.process.as_ref().ok_or_else(|| missing("process"))?;
    let root = config.root.as_ref().ok_or_else(|| missing("root"))?;
    let linux = config.linux.as_ref().ok_or_else(|| missing("linux"))?;
    refuse_unsupported(linux)?;

    let namespaces = namespaces::translate(linux)?;
    let mut plan = ContainerPlan {
        id: id.to_owned(),
        rootfs: path_text("root.path", root.path())?,
        readonly_rootfs: root.readonly().unwrap_or(false),
        hostname: config.hostname.clone().filter(|name| !name.is_empty()),
        domainname: config.domainname.clone().filter(|name| !name.is_empty()),
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        time_offsets: namespaces::time_offsets(linux, &namespaces)?,
        cgroup_namespace: namespaces.unshare_cgroup,
        network_namespace: namespaces.create & libc::CLONE_NEWNET as u64 != 0,
        ..ContainerPlan::default()
    };
    check_names(&plan, &namespaces)?;
    if let Some(name) = linux
        .rootfs_propagation()
        .as_ref()
        .filter(|name| !name.is_empty())
    {
        plan.rootfs_propagation = super::mount_options::propagation(name)
            .ok_or_else(|| SpecError::invalid("linux.rootfsPropagation", format!("is {name:?}")))?;
    }
    let idmaps = mounts::translate(config.mounts.as_deref(), linux, &mut plan)?;
    devices::translate(linux, &namespaces, &mut plan)?;
    translate_sysctls(linux, &mut plan)?;
    let guest_sysctls = take_network_sysctls(&namespaces, &mut plan);
    translate_hooks(&config, &mut plan);

    let mut process_plan = process::init_process(process)?;
    process_plan.personality = process::personality(linux)?;
    process_plan.keyring = Some(format!("_ses.{id}"));
    if linux
        .mount_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        log::info!("container {id}: linux.mountLabel has no meaning in the guest");
    }
    Ok(ContainerSpec {
        container: plan,
        process: process_plan,
        namespaces,
        idmaps,
        guest_sysctls,
        resources: linux.resources().clone(),
        seccomp: linux.seccomp().clone(),
        oom_score_adj: process.oom_score_adj.unwrap_or(0).clamp(-1000, 1000),
    })
}

fn check_names(plan: &ContainerPlan, namespaces: &Namespaces) -> Result<(), SpecError> {
    if (plan.hostname.is_some() || plan.domainname.is_some()) && !namespaces.has_uts {
        let problem = "needs a UTS namespace of the container's own";
        return Err(SpecError::invalid("hostname", problem));
    }
    Ok(())
}

fn refuse_other_platforms(config: &Config) -> Result<(), SpecError> {
    let others = [
        ("solaris", config.solaris.is_some()),
        ("windows", config.windows.is_some()),
        ("vm", config.vm.is_some()),
        ("zos", config.zos.is_some()),
    ];
    refuse_first(&others)
}

fn refuse_unsupported(linux: &Linux) -> Result<(), SpecError> {
    let net_devices = linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty());
    refuse_first(&[
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.netDevices", net_devices),
    ])
}

fn refuse_first(fields: &[(&str, bool)]) -> Result<(), SpecError> {
    match fields.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(SpecError::unsupported(*field)),
        None => Ok(()),
    }
}

/// Turns names into paths below /proc/sys as sysctl(8) does: dots become slashes and slashes dots,
/// unless the first of them is a slash.
fn translate_sysctls(linux: &Linux, plan: &mut ContainerPlan) -> Result<(), SpecError> {
    for (name, value) in linux.sysctl().iter().flatten() {
        let dots_separate = name
            .find(['.', '/'])
            .is_some_and(|at| name[at..].starts_with('.'));
        let path = if dots_separate {
            name.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect()
        } else {
            name.clone()
        };
        if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(SpecError::invalid(
                "linux.sysctl",
                format!("{name:?} is not a name"),
            ));
        }
        plan.sysctls.insert(path, value.clone());
    }
    Ok(())
}

/// Takes the sysctls of the guest's network, which a user namespace of the container's own may not
/// set.
fn take_network_sysctls(
    namespaces: &Namespaces,
    plan: &mut ContainerPlan,
) -> BTreeMap<String, String> {
    if matches!(namespaces.user, UserNamespace::Guest) || plan.network_namespace {
        return BTreeMap::new();
    }
    let all = std::mem::take(&mut plan.sysctls).into_iter();
    let (network, others) = all.partition(|(path, _)| path.starts_with("net/"));
    plan.sysctls = others;
    network
}

fn translate_hooks(config: &Config, plan: &mut ContainerPlan) {
    let Some(hooks) = &config.hooks else { return };
    let convert = |hooks: &Option<Vec<Hook>>| -> Vec<HookPlan> {
        hooks.iter().flatten().map(hook_plan).collect()
    };
    plan.create_hooks = convert(hooks.create_container());
    plan.start_hooks = convert(hooks.start_container());
    let bundle = std::path::Path::new(&plan.rootfs).parent();
    plan.hook_state = HookState {
        version: config.version.clone(),
        bundle: bundle
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        annotations: config.annotations.iter().flatten().map(own).collect(),
    };
}

fn own((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

fn hook_plan(hook: &Hook) -> HookPlan {
    let path = hook.path().to_string_lossy().into_owned();
    HookPlan {
        args: hook
            .args()
            .clone()
            .filter(|args| !args.is_empty())
            .unwrap_or(vec![path.clone()]),
        path,
        env: hook.env().clone(),
        timeout: hook
            .timeout()
            .and_then(|seconds| u64::try_from(seconds).ok()),
    }
}

fn path_text(field: &str, path: &std::path::Path) -> Result<String, SpecError> {
    match path.to_str() {
        Some("") => Err(SpecError::invalid(field, "is empty")),
        Some(text) if text.contains('\0') => Err(SpecError::invalid(field, "contains a NUL")),
        Some(text) => Ok(text.to_owned()),
        None => Err(SpecError::invalid(field, "is not UTF-8")),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
