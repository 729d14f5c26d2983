//! Hooks that run on the host: prestart and createRuntime before the container is created,
//! poststart after its program has started, poststop after it was deleted.
//!
//! The guest runs createContainer and startContainer; [`crate::spec::hooks`] checks those.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};
use rvm_sys::hook::{self, End, Running};
use serde::Serialize;

use crate::network::Namespace;
use crate::spec::validate::is_at_least_1;
use crate::state::{State, Status};
use rvm_sys::error_chain::chain;

/// The points in a container's life at which the host runs hooks; see config.md of the runtime
/// specification, "POSIX-platform Hooks".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// After the runtime environment is created, before the container is. Deprecated.
    Prestart,
    /// The successor of prestart, at the same point.
    CreateRuntime,
    /// After the program has started.
    Poststart,
    /// After the container is deleted.
    Poststop,
}

impl HookPoint {
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    fn status(self) -> Status {
        match self {
            Self::Prestart | Self::CreateRuntime => Status::Creating,
            Self::Poststart => Status::Running,
            Self::Poststop => Status::Stopped,
        }
    }

    fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// A hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("error running {point} hook #{index}: {path}")]
    Run {
        point: &'static str,
        /// The index into config.json's list.
        index: usize,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("error running {point} hook #{index}: {end}")]
    Failed {
        point: &'static str,
        index: usize,
        end: End,
    },
}

/// The container state that a hook reads from its standard input; see runtime.md, "State".
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Input<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "is_zero")]
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

/// Runs the hooks of a point in order until one fails, in the network namespace `outside` or in the
/// caller's. Cancelling the future kills the running hook.
pub async fn run(
    point: HookPoint,
    hooks: Option<&Hooks>,
    state: &State,
    outside: Option<&Namespace>,
) -> Result<(), HookError> {
    for (index, hook) in list(point, hooks) {
        let running = start(point, index, hook, state, outside)?;
        let end = running.end().await;
        judge(point, index, hook, end)?;
    }
    Ok(())
}

/// Runs the poststart hooks. Until runtime-spec 1.2 those that fail are warnings; from 1.3 on the
/// first is an error, with which the container must end.
pub async fn run_poststart(state: &State, outside: Option<&Namespace>) -> Result<(), HookError> {
    let (point, hooks) = (HookPoint::Poststart, state.hooks.as_ref());
    if is_at_least_1(3, &state.oci_version) {
        return run(point, hooks, state, outside).await;
    }
    run_and_warn(point, hooks, state, outside).await;
    Ok(())
}

/// Runs the hooks of a point in order, and logs those that fail. They run in the network namespace
/// `outside`, or in the caller's.
pub async fn run_and_warn(
    point: HookPoint,
    hooks: Option<&Hooks>,
    state: &State,
    outside: Option<&Namespace>,
) {
    for (index, hook) in list(point, hooks) {
        let end = match start(point, index, hook, state, outside) {
            Ok(running) => judge(point, index, hook, running.end().await),
            Err(error) => Err(error),
        };
        warn(end);
    }
}

fn list(point: HookPoint, hooks: Option<&Hooks>) -> impl Iterator<Item = (usize, &Hook)> {
    hooks
        .into_iter()
        .flat_map(move |hooks| point.of(hooks).iter().enumerate())
}

fn start(
    point: HookPoint,
    index: usize,
    hook: &Hook,
    state: &State,
    outside: Option<&Namespace>,
) -> Result<Running, HookError> {
    let input = Input {
        oci_version: &state.oci_version,
        id: state.id.as_str(),
        status: point.status(),
        pid: match point {
            HookPoint::Poststop => 0,
            _ => state.last_pid().cast_signed(),
        },
        bundle: &state.bundle,
        annotations: &state.annotations,
    };
    serde_json::to_vec(&input)
        .map_err(io::Error::from)
        .and_then(|input| {
            let start = || start_process(hook, &input, &state.bundle);
            outside.map_or_else(start, |outside| outside.within(start)?)
        })
        .map_err(|source| cannot_run(point, index, hook, source))
}

fn start_process(hook: &Hook, input: &[u8], bundle: &Path) -> io::Result<Running> {
    let seconds = hook.timeout().and_then(|limit| u64::try_from(limit).ok());
    let process = hook::Hook {
        path: hook.path(),
        args: hook.args().as_deref().unwrap_or_default(),
        // As with runc, it inherits that of the process that runs it: of the verb or the shim.
        env: hook.env().as_deref(),
        // The engine may have removed the bundle before the container is deleted.
        directory: Some(if bundle.is_dir() {
            bundle
        } else {
            Path::new("/")
        }),
        timeout: seconds.map(Duration::from_secs),
        filter: None,
    };
    Running::start(&process, input)
}

fn cannot_run(point: HookPoint, index: usize, hook: &Hook, source: io::Error) -> HookError {
    HookError::Run {
        point: point.name(),
        index,
        path: hook.path().display().to_string(),
        source,
    }
}

fn judge(
    point: HookPoint,
    index: usize,
    hook: &Hook,
    end: io::Result<End>,
) -> Result<(), HookError> {
    let end = end.map_err(|source| cannot_run(point, index, hook, source))?;
    if end.is_success() {
        return Ok(());
    }
    Err(HookError::Failed {
        point: point.name(),
        index,
        end,
    })
}

fn warn(result: Result<(), HookError>) {
    if let Err(error) = result {
        tracing::warn!("{}", chain(&error));
    }
}

#[cfg(test)]
mod tests;
