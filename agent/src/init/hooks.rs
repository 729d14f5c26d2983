//! Hooks that run in the guest.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::Serialize;

use super::plan::{ContainerPlan, HookPlan};
use crate::sys::{Doing as _, OsError};

/// How much of a hook's output ends up in an error message.
const MAX_OUTPUT: u64 = 4096;

/// When a hook runs.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, before the program.
    StartContainer,
}

impl Moment {
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

/// A hook that failed, and with it the container.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("error running {moment} hook #{index}: {source}")]
    Run {
        /// When.
        moment: &'static str,
        /// Its place in config.json, from 0.
        index: usize,
        /// Why.
        source: OsError,
    },
    /// It ended badly.
    #[error("error running {moment} hook #{index}: {end}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        /// When.
        moment: &'static str,
        /// Its place in config.json, from 0.
        index: usize,
        /// How it ended.
        end: String,
        /// The beginning of what it wrote.
        stdout: String,
        /// Likewise.
        stderr: String,
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
    annotations: &'plan std::collections::BTreeMap<String, String>,
}

/// Runs hooks in order; the first that fails ends it.
pub fn run_all(moment: Moment, hooks: &[HookPlan], plan: &ContainerPlan) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = State {
        oci_version: &plan.hook_state.version,
        id: &plan.id,
        status: moment.status(),
        pid: std::process::id(),
        bundle: &plan.hook_state.bundle,
        annotations: &plan.hook_state.annotations,
    };
    let state = serde_json::to_vec(&state).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        let run = |source| HookError::Run {
            moment: moment.name(),
            index,
            source,
        };
        let (mut stdout, mut stderr) = (memory_file().map_err(run)?, memory_file().map_err(run)?);
        let end = run_one(hook, &state, &stdout, &stderr).map_err(run)?;
        if end != "exit status 0" {
            return Err(HookError::Failed {
                moment: moment.name(),
                index,
                end,
                stdout: beginning(&mut stdout),
                stderr: beginning(&mut stderr),
            });
        }
    }
    Ok(())
}

/// Runs a hook and says how it ended.
fn run_one(hook: &HookPlan, state: &[u8], stdout: &File, stderr: &File) -> Result<String, OsError> {
    let doing = || format!("run {}", hook.path);
    let mut input = memory_file()?;
    input.write_all(state).doing(doing)?;
    input.rewind().doing(doing)?;
    let mut command = Command::new(&hook.path);
    command.env_clear().stdin(Stdio::from(input));
    command.stdout(Stdio::from(stdout.try_clone().doing(doing)?));
    command.stderr(Stdio::from(stderr.try_clone().doing(doing)?));
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let mut child = command.spawn().doing(doing)?;
    let in_time = match hook.timeout {
        Some(seconds) => ends_within(&child, Duration::from_secs(seconds)).doing(doing)?,
        None => true,
    };
    if !in_time {
        // It may have ended in this moment.
        let _ = child.kill();
    }
    let status = child.wait().doing(doing)?;
    Ok(match (in_time, hook.timeout) {
        (false, Some(seconds)) => format!("killed after its timeout of {seconds} s"),
        _ => describe(status),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn ends_within(child: &Child, limit: Duration) -> rustix::io::Result<bool> {
    let pid = rustix::process::Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}

fn memory_file() -> Result<File, OsError> {
    let fd = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)
        .doing(|| "make a memory file for a hook")?;
    Ok(File::from(fd))
}

fn beginning(file: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read is left out of the message.
    let _ = file
        .rewind()
        .and_then(|()| file.take(MAX_OUTPUT).read_to_end(&mut text));
    String::from_utf8_lossy(&text).trim_end().to_owned()
}
