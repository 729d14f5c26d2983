//! A container's groups, from its configuration to its state.

use oci_spec::runtime::LinuxResources;

use crate::cgroup::{Cgroup, CgroupError, Driver};
use crate::checkpoint::SavedContainer;
use crate::config::EngineKind;
use crate::engine;
use crate::spec::Bundle;
use crate::spec::pod::Role;
use crate::state::{Container, StateError};

/// A container's groups could not be made, written down or limited.
#[derive(Debug, thiserror::Error)]
pub enum ContainerCgroupError {
    /// The groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container's state.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Makes a container's groups, writes them down, and puts processes into them. Returns them.
pub fn enter(
    container: &Container,
    bundle: &Bundle,
    driver: Driver,
    processes: &[i32],
) -> Result<Cgroup, ContainerCgroupError> {
    let linux = bundle.spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let resources = resources(bundle);
    let cgroup = Cgroup::find(driver, path, container.id().as_str())?;
    if let Some(resources) = resources {
        cgroup.check(resources)?;
    }
    // Before anything is made, so that whoever deletes the container finds it.
    container.lock()?.remember_cgroup(&cgroup)?;
    cgroup.create(processes, resources)?;
    Ok(cgroup)
}

/// Holds the machine to the container's limits, once its guest is up. A guest that goes on from a
/// checkpoint has those of its last update.
pub fn limit(
    container: &Container,
    bundle: &Bundle,
    saved: Option<&SavedContainer>,
    kind: EngineKind,
) -> Result<(), ContainerCgroupError> {
    if let Some(updated) = saved.and_then(|saved| saved.updated.as_ref()) {
        return update(container, &updated.on_host(), kind);
    }
    match (container.state()?.cgroup, resources(bundle)) {
        (Some(cgroup), Some(resources)) => Ok(cgroup.limit(resources, engine::of(kind).overhead)?),
        _ => Ok(()),
    }
}

/// Changes the limits of a container that runs; nothing where it has no groups.
pub fn update(
    container: &Container,
    resources: &LinuxResources,
    kind: EngineKind,
) -> Result<(), ContainerCgroupError> {
    match container.state()?.cgroup {
        Some(cgroup) => Ok(cgroup.update(resources, engine::of(kind).overhead)?),
        None => Ok(()),
    }
}

/// The limits that the container's processes on the host are held to.
///
/// The sandbox of a pod has its machine in the group of its first container, whose own limits are
/// meant for a program that does nothing: there the group above, the pod's, is what limits.
fn resources(bundle: &Bundle) -> Option<&LinuxResources> {
    match bundle.role {
        Role::Sandbox => None,
        Role::Alone | Role::Member(_) => bundle.spec.linux().as_ref()?.resources().as_ref(),
    }
}
