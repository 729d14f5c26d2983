//! Checks of a configuration that do not depend on the host. Pure.

use std::collections::HashSet;

use oci_spec::runtime::{Hooks, LinuxNamespaceType, Process, Spec};

use super::pod::{Role, path_of};
use super::unsupported;
use crate::host::memory_policy::MemoryPolicy;
use crate::network::devices;

/// A field is invalid or unsupported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// As in the runtime specification, with indices.
    pub field: String,
    /// Continues a sentence that begins with the field.
    pub reason: String,
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Result<(), FieldError> {
    Err(FieldError {
        field: field.into(),
        reason: reason.into(),
    })
}

/// Checks the configuration of a container with this role in a pod.
pub fn check(spec: &Spec, role: &Role) -> Result<(), FieldError> {
    version(spec.version())?;
    match spec.process() {
        None => invalid("process", "is missing")?,
        Some(process) => self::process(process)?,
    }
    if spec.root().is_none() {
        invalid("root", "is missing")?;
    }
    mounts(spec)?;
    namespaces(spec, role)?;
    if let Some(hooks) = spec.hooks() {
        self::hooks(hooks)?;
    }
    memory_policy(spec, role)?;
    net_devices(spec, role)?;
    unsupported::find(spec).map_or(Ok(()), Err)
}

/// Checks `linux.netDevices`.
fn net_devices(spec: &Spec, role: &Role) -> Result<(), FieldError> {
    let linux = spec.linux().as_ref();
    let wanted = linux.and_then(|linux| linux.net_devices().as_ref());
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(());
    };
    if let Role::Member(_) = role {
        return Err(of_the_pods_machine("linux.netDevices"));
    }
    match devices::parse(wanted) {
        Ok(_) => Ok(()),
        Err((name, reason)) => invalid(format!("linux.netDevices[{name:?}]"), reason),
    }
}

/// Checks `linux.memoryPolicy`.
fn memory_policy(spec: &Spec, role: &Role) -> Result<(), FieldError> {
    let linux = spec.linux().as_ref();
    let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) else {
        return Ok(());
    };
    if let Role::Member(_) = role {
        return Err(of_the_pods_machine("linux.memoryPolicy"));
    }
    match MemoryPolicy::of(policy) {
        Ok(_) => Ok(()),
        Err((member, reason)) => invalid(format!("linux.memoryPolicy.{member}"), reason),
    }
}

/// Whether a version of the specification is 1.`minor` or a later one, or a draft of it.
pub(crate) fn is_at_least_1(minor: u64, version: &str) -> bool {
    semver::Version::parse(version)
        .is_ok_and(|version| (version.major, version.minor) >= (1, minor))
}

/// Only the sandbox of a pod has a machine.
pub(super) fn of_the_pods_machine(field: &str) -> FieldError {
    FieldError {
        field: field.to_owned(),
        reason:
            "is for the machine, which the container shares with its pod; give it to the pod's \
                 sandbox"
                .to_owned(),
    }
}

fn version(version: &str) -> Result<(), FieldError> {
    match semver::Version::parse(version) {
        Ok(version) if version.major == 1 => Ok(()),
        Ok(_) => invalid(
            "ociVersion",
            format!("{version} is unknown; 1.x is supported"),
        ),
        Err(error) => invalid("ociVersion", format!("{version:?} is no version: {error}")),
    }
}

/// Checks a process object.
pub fn process(process: &Process) -> Result<(), FieldError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        invalid("process.args", "is empty")?;
    }
    no_nul("process.args", args)?;
    no_nul("process.env", process.env().as_deref().unwrap_or_default())?;
    if !process.cwd().is_absolute() {
        invalid(
            "process.cwd",
            format!("is not an absolute path: {:?}", process.cwd()),
        )?;
    }
    rlimits(process)?;
    unsupported::process(process).map_or(Ok(()), Err)
}

/// The specification requires an error for duplicates.
fn rlimits(process: &Process) -> Result<(), FieldError> {
    let list = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in list.iter().enumerate() {
        if list[..index].iter().any(|other| other.typ() == limit.typ()) {
            let field = format!("process.rlimits[{index}].type");
            invalid(field, format!("repeats {}", limit.typ()))?;
        }
    }
    Ok(())
}

/// execve(2) would cut a string at its first zero byte.
fn no_nul(field: &str, values: &[String]) -> Result<(), FieldError> {
    match values.iter().position(|value| value.contains('\0')) {
        Some(index) => invalid(format!("{field}[{index}]"), "contains a zero byte"),
        None => Ok(()),
    }
}

fn mounts(spec: &Spec) -> Result<(), FieldError> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        if mount.destination().as_os_str().is_empty() {
            invalid(format!("{field}.destination"), "is empty")?;
        }
        if let Err(reason) = super::id_maps::check_id_map(mount, spec) {
            invalid(&field, reason)?;
        }
        if super::mounts::is_bind(mount) && mount.source().is_none() {
            invalid(format!("{field}.source"), "is missing")?;
        }
    }
    Ok(())
}

fn namespaces(spec: &Spec, role: &Role) -> Result<(), FieldError> {
    let list = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut seen = HashSet::new();
    for (index, namespace) in list.into_iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if !seen.insert(namespace.typ()) {
            invalid(&field, format!("repeats the {} namespace", namespace.typ()))?;
        }
        // The host opens a network namespace. In a pod an engine may have created other namespaces
        // on the host, or they are compared with the pod's later.
        let may_have_path = namespace.typ() == LinuxNamespaceType::Network || *role != Role::Alone;
        if let (false, Some(path)) = (may_have_path, path_of(namespace)) {
            let reason = format!(
                "asks to join the namespace {} of the host, which a virtual machine cannot",
                path.display()
            );
            invalid(format!("{field}.path"), reason)?;
        }
    }
    if !seen.contains(&LinuxNamespaceType::Network) {
        invalid(
            "linux.namespaces",
            "has no network namespace, so the container would be in the host's network, which a \
             virtual machine cannot share; give it a network of its own or none",
        )?;
    }
    Ok(())
}

/// Checks hooks without reading their programs.
fn hooks(hooks: &Hooks) -> Result<(), FieldError> {
    for (name, list) in super::hooks::lists(hooks) {
        for (index, hook) in list.iter().enumerate() {
            let field = format!("hooks.{name}[{index}]");
            if !hook.path().is_absolute() {
                let reason = format!("is not an absolute path: {:?}", hook.path());
                invalid(format!("{field}.path"), reason)?;
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                invalid(format!("{field}.timeout"), "is not greater than 0")?;
            }
            let env = hook.env().as_deref().unwrap_or_default();
            no_nul(
                &format!("{field}.args"),
                hook.args().as_deref().unwrap_or_default(),
            )?;
            no_nul(&format!("{field}.env"), env)?;
            if let Some(index) = env.iter().position(|entry| !entry.contains('=')) {
                invalid(
                    format!("{field}.env[{index}]"),
                    "is not of the form NAME=value",
                )?;
            }
        }
    }
    Ok(())
}
