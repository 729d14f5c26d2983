//! Hooks that run in the guest.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rvm_sys::hook::{End, Hook, Running};
use serde::Serialize;

use super::plan::{ContainerPlan, HookPlan};
use crate::sys::{Doing as _, OsError};

/// When a hook runs, by the runtime specification's names.
#[derive(Clone, Copy, Debug)]
pub enum HookPoint {
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, before the program.
    StartContainer,
}

impl HookPoint {
    fn name(self) -> &'static str {
        match self {
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::CreateContainer => "creating",
            Self::StartContainer => "created",
        }
    }
}

/// A hook that failed, and with it the container. `index` counts the hooks of a point from 0.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("error running {point} hook #{index}")]
    Run {
        point: &'static str,
        index: usize,
        #[source]
        source: OsError,
    },
    #[error("error running {point} hook #{index}: {end}")]
    Failed {
        point: &'static str,
        index: usize,
        end: End,
    },
}

/// The container's state as the runtime specification has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'plan> {
    oci_version: &'plan str,
    id: &'plan str,
    status: &'static str,
    pid: u32,
    bundle: &'plan str,
    annotations: &'plan BTreeMap<String, String>,
}

/// Runs the hooks of a point in order, under a filter of system calls with its flags if there is
/// one; the first failure ends the run. A hook without an environment of its own gets `env`.
pub fn run_all(
    point: HookPoint,
    hooks: &[HookPlan],
    env: &[String],
    filter: Option<(&[u8], u64)>,
    plan: &ContainerPlan,
) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = State {
        oci_version: &plan.hook_state.version,
        id: &plan.id,
        status: point.status(),
        pid: std::process::id(),
        bundle: &plan.hook_state.bundle,
        annotations: &plan.hook_state.annotations,
    };
    let state = serde_json::to_vec(&state).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        let point = point.name();
        let end = run_one(hook, env, filter, &state).map_err(|source| HookError::Run {
            point,
            index,
            source,
        })?;
        if !end.is_success() {
            return Err(HookError::Failed { point, index, end });
        }
    }
    Ok(())
}

fn run_one(
    hook: &HookPlan,
    env: &[String],
    filter: Option<(&[u8], u64)>,
    state: &[u8],
) -> Result<End, OsError> {
    let process = Hook {
        path: Path::new(&hook.path),
        args: &hook.args,
        env: Some(hook.env.as_deref().unwrap_or(env)),
        directory: None,
        timeout: hook.timeout.map(Duration::from_secs),
        filter,
    };
    Running::start(&process, state)
        .and_then(Running::wait)
        .doing(|| format!("run {}", hook.path))
}
