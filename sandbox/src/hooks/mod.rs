//! Hooks that run on the host: prestart and createRuntime before the container is made, poststart
//! after its program was started, poststop after it was deleted.
//!
//! Those of the container's own namespaces are the guest's to run; see [`guest`] for what can be
//! run there.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};
use rvm_sys::hook::{self, End, Running};
use serde::Serialize;

use crate::network::Namespace;
use crate::state::{State, Status};
use rvm_sys::error_chain::chain;

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The container's namespaces are there, its process is not.
    Prestart,
    /// Likewise; the later name for the same moment.
    CreateRuntime,
    /// The program runs.
    Poststart,
    /// The container is gone.
    Poststop,
}

impl Moment {
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

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("error running {moment} hook #{index}: {path}")]
    Run {
        /// When.
        moment: &'static str,
        /// Its place in config.json, from 0.
        index: usize,
        /// The program.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It ended badly.
    #[error("error running {moment} hook #{index}: {end}")]
    Failed {
        /// When.
        moment: &'static str,
        /// Its place in config.json, from 0.
        index: usize,
        /// How it ended, and what it said.
        end: End,
    },
}

/// What a hook reads from its standard input: the state as the runtime specification has it.
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

/// Runs the hooks of a moment in order; the first that fails ends it. Given up, it ends the one that
/// runs. They run in the network namespace of the host, wherever the caller is.
pub async fn run(
    moment: Moment,
    hooks: Option<&Hooks>,
    state: &State,
    outside: &Namespace,
) -> Result<(), HookError> {
    for (index, hook) in list(moment, hooks) {
        let running = start(moment, index, hook, state, Some(outside))?;
        let end = running.end().await;
        judge(moment, index, hook, end)?;
    }
    Ok(())
}

/// Runs the hooks of a moment in order; the container's life goes on whether they fail or not. They
/// run in the network namespace of the host, or where the caller is if that is not said.
pub async fn run_and_warn(
    moment: Moment,
    hooks: Option<&Hooks>,
    state: &State,
    outside: Option<&Namespace>,
) {
    for (index, hook) in list(moment, hooks) {
        let end = match start(moment, index, hook, state, outside) {
            Ok(running) => judge(moment, index, hook, running.end().await),
            Err(error) => Err(error),
        };
        warn(end);
    }
}

fn list(moment: Moment, hooks: Option<&Hooks>) -> impl Iterator<Item = (usize, &Hook)> {
    hooks
        .into_iter()
        .flat_map(move |hooks| moment.of(hooks).iter().enumerate())
}

fn start(
    moment: Moment,
    index: usize,
    hook: &Hook,
    state: &State,
    outside: Option<&Namespace>,
) -> Result<Running, HookError> {
    let input = Input {
        oci_version: &state.oci_version,
        id: &state.id,
        status: moment.status(),
        pid: match moment {
            Moment::Poststop => 0,
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
        .map_err(|source| cannot_run(moment, index, hook, source))
}

fn start_process(hook: &Hook, input: &[u8], bundle: &Path) -> io::Result<Running> {
    let seconds = hook.timeout().and_then(|limit| u64::try_from(limit).ok());
    let process = hook::Hook {
        path: hook.path(),
        args: hook.args().as_deref().unwrap_or_default(),
        env: hook.env().as_deref().unwrap_or_default(),
        // The engine may have removed the bundle before the container is deleted.
        directory: Some(if bundle.is_dir() {
            bundle
        } else {
            Path::new("/")
        }),
        timeout: seconds.map(Duration::from_secs),
    };
    Running::start(&process, input)
}

fn cannot_run(moment: Moment, index: usize, hook: &Hook, source: io::Error) -> HookError {
    HookError::Run {
        moment: moment.name(),
        index,
        path: hook.path().display().to_string(),
        source,
    }
}

fn judge(moment: Moment, index: usize, hook: &Hook, end: io::Result<End>) -> Result<(), HookError> {
    let end = end.map_err(|source| cannot_run(moment, index, hook, source))?;
    if end.is_success() {
        return Ok(());
    }
    Err(HookError::Failed {
        moment: moment.name(),
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
