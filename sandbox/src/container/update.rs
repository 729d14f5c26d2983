//! The verb update: changing the limits of a running container.

use std::io;

use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::cgroup::{self, ContainerCgroupError};
use crate::container::lifecycle::LifecycleError;
use crate::container::running::{connect, explained};
use crate::control::{self, ControlError, Request};
use crate::sandbox::MemoryResult;
use crate::sizing::Change;
use crate::sizing::pod_limits::{self, Limits};
use crate::spec::pod::Role;
use crate::spec::{self, unsupported, validate::FieldError};
use crate::state::{Container, State, StateError, Status};
use rvm_sys::fault_point;

/// The fields in which 0 is a value. In others it stands for "as it is", as with runc.
const ZERO_IS_A_VALUE: [&str; 2] = ["idle", "burst"];

/// A container's limits could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The container does not run, or its agent failed.
    #[error(transparent)]
    Container(#[from] LifecycleError),
    /// The state could not be read or changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host's cgroups refuse a limit.
    #[error(transparent)]
    Cgroup(#[from] ContainerCgroupError),
    /// Neither the guest nor the host can enforce the limit.
    #[error("{} {}", .0.field, .0.reason)]
    Unsupported(FieldError),
    /// The machine could not be made larger or smaller.
    #[error(transparent)]
    Machine(#[from] ControlError),
    /// sandbox.json could not be read.
    #[error("cannot find out which engine runs the sandbox")]
    Record(#[source] io::Error),
    /// The old limits with the new ones over them are no `linux.resources`.
    #[error("cannot put the old limits and the new ones together")]
    Merge(#[source] serde_json::Error),
    /// checkBeforeUpdate is set, and the container uses more memory than the new limit.
    #[error("cannot set the memory limit to {limit} bytes: {used} are used")]
    InUse {
        /// The new limit, in bytes.
        limit: u64,
        /// What the container uses, in bytes.
        used: u64,
    },
}

/// Changes the limits that `change` names, and leaves the others as they are. Device rules are
/// ignored, as with runc.
pub async fn update(container: &Container, change: &LinuxResources) -> Result<(), UpdateError> {
    let state = container.state()?;
    if matches!(state.status(), Status::Stopped | Status::Creating) {
        let words = "container not running".to_owned();
        return Err(LifecycleError::FailedPrecondition(words).into());
    }
    let old = state.resources.clone().unwrap_or_default();
    let new = merge(&old, change).map_err(UpdateError::Merge)?;
    if let Some(problem) = unsupported::resources(change) {
        return Err(UpdateError::Unsupported(problem));
    }
    if change.memory().and_then(|memory| memory.swap()).is_some() {
        spec::resources::warn_about_swap(&new);
    }
    if change
        .memory()
        .and_then(|memory| memory.check_before_update())
        == Some(true)
    {
        check_usage(container, &state, &new).await?;
    }
    let memory = apply(container, &state, &old, &new).await?;
    fault_point!("update.applied").map_err(UpdateError::Record)?;
    let locked = container.lock()?;
    let mut state = locked.load()?;
    state.kept_memory = match memory {
        MemoryResult::AsAsked => None,
        MemoryResult::Kept => state.kept_memory.or(Some(memory_limit(&old))),
    };
    state.first_resources.get_or_insert(old);
    state.resources = Some(new);
    Ok(locked.save(&state)?)
}

/// Changes the limits in the guest, of the machine, and in the host's cgroups. The machine must
/// have what the container may use, and the host's cgroups must allow what the machine has. So
/// limits grow from the host inwards and shrink from the guest outwards, and the kernel kills
/// nothing.
async fn apply(
    container: &Container,
    state: &State,
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<MemoryResult, UpdateError> {
    let host_limit = state.kept_memory.unwrap_or(memory_limit(old));
    // The first failure is reported; undoing is tried, and its failures are not.
    if memory_limit(new) <= host_limit {
        let applied = from_inside(container, state, old, new).await;
        if applied.is_err() {
            // The host's cgroups come last, so they are as they were.
            let _ = on_machine(container, state, new, old).await;
            let _ = on_guest(container, state, old).await;
        }
        applied
    } else {
        let applied = from_outside(container, state, old, new).await;
        if applied.is_err() {
            let _ = from_inside(container, state, new, old).await;
        }
        applied
    }
}

async fn from_inside(
    container: &Container,
    state: &State,
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<MemoryResult, UpdateError> {
    on_guest(container, state, new).await?;
    let memory = on_machine(container, state, old, new).await?;
    match memory {
        MemoryResult::AsAsked => on_host(container, state, new)?,
        // With a lower limit, the host would kill the machine for the memory that it keeps.
        MemoryResult::Kept => on_host(container, state, &without_memory(new))?,
    }
    Ok(memory)
}

async fn from_outside(
    container: &Container,
    state: &State,
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<MemoryResult, UpdateError> {
    on_host(container, state, new)?;
    on_machine(container, state, old, new).await?;
    on_guest(container, state, new).await?;
    Ok(MemoryResult::AsAsked)
}

/// Makes the machine as large as the limits ask for. The limits of a pod's sandbox container, which
/// does nothing, have no effect on it.
async fn on_machine(
    container: &Container,
    state: &State,
    old: &LinuxResources,
    new: &LinuxResources,
) -> Result<MemoryResult, UpdateError> {
    if let Ok(Role::Sandbox) = Role::from_annotations(&state.annotations) {
        return Ok(MemoryResult::AsAsked);
    }
    let change = match &state.sandbox {
        None => Change::new(old, new, false),
        Some(sandbox) => {
            let store = container.store();
            let annotations = store.open(sandbox.as_str())?.state()?.annotations;
            // Its sandbox would not have started with wrong ones.
            let announced = pod_limits::annotated(&annotations).unwrap_or_default();
            let others = store.limits_of_others(sandbox, container.id())?;
            let with = |own: &LinuxResources| {
                let mut limits = others.clone();
                limits.push(Limits {
                    now: own.clone(),
                    ..state.limits()
                });
                pod_limits::updated(announced.as_ref(), &limits)
            };
            Change::new(&with(old), &with(new), announced.is_none())
        }
    };
    let request = Request::Resize(Box::new(change));
    Ok(control::ask(&container.sandbox(state)?, request).await?)
}

fn without_memory(resources: &LinuxResources) -> LinuxResources {
    let mut others = resources.clone();
    others.set_memory(None);
    others
}

async fn on_guest(
    container: &Container,
    state: &State,
    resources: &LinuxResources,
) -> Result<(), UpdateError> {
    fault_point!("update.guest").map_err(UpdateError::Record)?;
    let agent = connect(container, state).await?;
    let mut inside = resources.clone();
    spec::resources::for_guest(&mut inside);
    let updated = agent.update(container.id(), &inside).await;
    Ok(explained(container, state, updated).await?)
}

fn on_host(
    container: &Container,
    state: &State,
    resources: &LinuxResources,
) -> Result<(), UpdateError> {
    fault_point!("update.host").map_err(UpdateError::Record)?;
    match container.sandbox(state)?.record() {
        Ok(Some(record)) => Ok(cgroup::update(container, resources, record.engine)?),
        Ok(None) => Ok(()),
        Err(error) => Err(UpdateError::Record(error)),
    }
}

/// The memory limit in bytes; the greatest number if there is none.
fn memory_limit(resources: &LinuxResources) -> u64 {
    let limit = resources.memory().and_then(|memory| memory.limit());
    let limit = limit.and_then(|limit| u64::try_from(limit).ok());
    limit.filter(|limit| *limit != 0).unwrap_or(u64::MAX)
}

async fn check_usage(
    container: &Container,
    state: &State,
    new: &LinuxResources,
) -> Result<(), UpdateError> {
    let limit = new.memory().and_then(|memory| memory.limit());
    let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()) else {
        return Ok(());
    };
    let stats = connect(container, state).await?.stats(container.id()).await;
    let used = explained(container, state, stats).await?.memory.current;
    if used > limit {
        return Err(UpdateError::InUse { limit, used });
    }
    Ok(())
}

/// The old limits with the new ones over them.
///
/// Limits depend on one another, such as those of memory and of memory and swap together, so all of
/// them are set each time.
fn merge(
    old: &LinuxResources,
    change: &LinuxResources,
) -> Result<LinuxResources, serde_json::Error> {
    let mut merged = serde_json::to_value(old)?;
    let mut change = serde_json::to_value(change)?;
    if let Some(change) = change.as_object_mut() {
        change.remove("devices");
    }
    lift_swap_with_memory(&mut change);
    merge_into(&mut merged, change);
    serde_json::from_value(merged)
}

/// As in cgroup v1, lifting the limit of memory lifts that of memory and swap together.
fn lift_swap_with_memory(change: &mut Value) {
    if let Some(memory) = change.get_mut("memory").and_then(Value::as_object_mut)
        && memory.get("limit") == Some(&Value::from(-1))
    {
        memory.entry("swap").or_insert(Value::from(-1));
    }
}

fn merge_into(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                let is_unchanged = value == 0 && !ZERO_IS_A_VALUE.contains(&key.as_str());
                if !is_unchanged {
                    merge_into(old.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        // Merged into an empty object, so that zeros of an object that was missing are left out.
        (old @ Value::Null, new @ Value::Object(_)) => {
            *old = Value::Object(serde_json::Map::new());
            merge_into(old, new);
        }
        (old, new) => *old = new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(old: Value, change: Value) -> Value {
        let read = |value| serde_json::from_value::<LinuxResources>(value).unwrap();
        serde_json::to_value(merge(&read(old), &read(change)).unwrap()).unwrap()
    }

    #[test]
    fn what_is_not_named_stays() {
        let old = json!({ "memory": { "limit": 10, "swap": 20 }, "pids": { "limit": 5 },
                          "unified": { "a.b": "1" } });
        let change = json!({ "memory": { "limit": 15 }, "unified": { "c.d": "2" } });
        let expected = json!({ "memory": { "limit": 15, "swap": 20 }, "pids": { "limit": 5 },
                               "unified": { "a.b": "1", "c.d": "2" } });
        assert_eq!(merged(old, change), expected);
    }

    #[test]
    fn zero_leaves_things_as_they_are_but_for_idle() {
        let old = json!({ "cpu": { "quota": 7, "idle": 1 }, "pids": { "limit": 5 } });
        let change =
            json!({ "cpu": { "quota": 0, "idle": 0, "period": 0 }, "pids": { "limit": 0 } });
        let expected = json!({ "cpu": { "quota": 7, "idle": 0 }, "pids": { "limit": 5 } });
        assert_eq!(merged(old, change), expected);
        assert_eq!(
            merged(json!({}), json!({ "cpu": { "quota": 0 } })),
            json!({ "cpu": {} })
        );
    }

    #[test]
    fn no_limit_is_more_than_any() {
        let limit = |memory: Value| {
            let resources = json!({ "memory": memory });
            memory_limit(&serde_json::from_value(resources).unwrap())
        };
        assert_eq!(limit(json!({ "limit": 5 })), 5);
        assert_eq!(limit(json!({ "limit": -1 })), u64::MAX);
        assert_eq!(limit(json!({})), u64::MAX);
    }

    #[test]
    fn devices_are_not_an_updates_affair() {
        let rules = json!([{ "allow": false, "access": "rwm" }]);
        let old = json!({ "devices": rules });
        assert_eq!(merged(old.clone(), json!({ "devices": [] })), old);
    }

    #[test]
    fn lifting_the_memory_limit_lifts_that_of_swap() {
        let old = json!({ "memory": { "limit": 10, "swap": 20 } });
        let lifted = json!({ "memory": { "limit": -1, "swap": -1 } });
        assert_eq!(merged(old, json!({ "memory": { "limit": -1 } })), lifted);
    }
}
