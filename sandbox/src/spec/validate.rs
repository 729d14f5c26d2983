//! What is wrong with a configuration whatever the host is like. Pure.

use std::collections::HashSet;

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Process, Spec};

use super::pod::{Role, path_of};
use super::unsupported;

/// A field that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its name, as in the runtime specification.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

fn problem(field: impl Into<String>, reason: impl Into<String>) -> Result<(), Problem> {
    Err(Problem {
        field: field.into(),
        reason: reason.into(),
    })
}

/// Finds the first problem of a container with this part in a pod.
pub fn check(spec: &Spec, role: &Role) -> Result<(), Problem> {
    version(spec.version())?;
    match spec.process() {
        None => problem("process", "is missing")?,
        Some(process) => self::process(process)?,
    }
    if spec.root().is_none() {
        problem("root", "is missing")?;
    }
    mounts(spec)?;
    namespaces(spec, role)?;
    if let Some(hooks) = spec.hooks() {
        self::hooks(hooks)?;
    }
    unsupported::find(spec).map_or(Ok(()), Err)
}

fn version(version: &str) -> Result<(), Problem> {
    match semver::Version::parse(version) {
        Ok(version) if version.major == 1 => Ok(()),
        Ok(_) => problem(
            "ociVersion",
            format!("{version} is unknown; 1.x is supported"),
        ),
        Err(error) => problem("ociVersion", format!("{version:?} is no version: {error}")),
    }
}

/// Finds the first problem of a process object.
pub fn process(process: &Process) -> Result<(), Problem> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        problem("process.args", "is empty")?;
    }
    no_nul("process.args", args)?;
    no_nul("process.env", process.env().as_deref().unwrap_or_default())?;
    if !process.cwd().is_absolute() {
        problem(
            "process.cwd",
            format!("is not an absolute path: {:?}", process.cwd()),
        )?;
    }
    rlimits(process)?;
    unsupported::process(process).map_or(Ok(()), Err)
}

/// The specification demands an error where one is there twice.
fn rlimits(process: &Process) -> Result<(), Problem> {
    let list = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in list.iter().enumerate() {
        if list[..index].iter().any(|other| other.typ() == limit.typ()) {
            let field = format!("process.rlimits[{index}].type");
            problem(field, format!("repeats {}", limit.typ()))?;
        }
    }
    Ok(())
}

/// What execve(2) takes ends at the first zero byte.
fn no_nul(field: &str, values: &[String]) -> Result<(), Problem> {
    match values.iter().position(|value| value.contains('\0')) {
        Some(index) => problem(format!("{field}[{index}]"), "contains a zero byte"),
        None => Ok(()),
    }
}

fn mounts(spec: &Spec) -> Result<(), Problem> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        if mount.destination().as_os_str().is_empty() {
            problem(format!("{field}.destination"), "is empty")?;
        }
        if let Err(reason) = super::mounts::check_id_map(mount, spec) {
            problem(&field, reason)?;
        }
        if super::mounts::is_bind(mount) && mount.source().is_none() {
            problem(format!("{field}.source"), "is missing")?;
        }
    }
    Ok(())
}

fn namespaces(spec: &Spec, role: &Role) -> Result<(), Problem> {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut seen = HashSet::new();
    for (index, namespace) in list.into_iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if !seen.insert(namespace.typ()) {
            problem(&field, format!("repeats the {} namespace", namespace.typ()))?;
        }
        // A path to the network is the host's to open. Others of a pod may have been made by an
        // engine on the host, or are compared with those of the pod where they are known.
        let is_fit = namespace.typ() == LinuxNamespaceType::Network || *role != Role::Alone;
        if let (false, Some(path)) = (is_fit, path_of(namespace)) {
            let reason = format!(
                "asks to join the namespace {} of the host, which a virtual machine cannot",
                path.display()
            );
            problem(format!("{field}.path"), reason)?;
        }
    }
    if !seen.contains(&LinuxNamespaceType::Network) {
        problem(
            "linux.namespaces",
            "has no network namespace, so the container would be in the host's network, which a \
             virtual machine cannot share; give it a network of its own (--network bridge) or none \
             (--network none)",
        )?;
    }
    Ok(())
}

/// What can be said of hooks without looking at the programs.
fn hooks(hooks: &Hooks) -> Result<(), Problem> {
    for (name, list) in super::hooks::lists(hooks) {
        for (index, hook) in list.iter().enumerate() {
            let field = format!("hooks.{name}[{index}]");
            if !hook.path().is_absolute() {
                let reason = format!("is not an absolute path: {:?}", hook.path());
                problem(format!("{field}.path"), reason)?;
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                problem(format!("{field}.timeout"), "is not greater than 0")?;
            }
            let env = hook.env().as_deref().unwrap_or_default();
            no_nul(
                &format!("{field}.args"),
                hook.args().as_deref().unwrap_or_default(),
            )?;
            no_nul(&format!("{field}.env"), env)?;
            if let Some(index) = env.iter().position(|entry| !entry.contains('=')) {
                problem(
                    format!("{field}.env[{index}]"),
                    "is not of the form NAME=value",
                )?;
            }
        }
    }
    Ok(())
}
