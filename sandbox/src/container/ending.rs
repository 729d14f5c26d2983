//! Ending a container from the host, whatever its guest does.
//!
//! ```text
//!   ask the agent ──> it reports the end ─────────────────────────────> done
//!        │
//!        │ it is silent or lost, or the container outlives the grace
//!        v
//!   kill the machine: the container's own, or that of its whole pod ──> done
//! ```

use std::time::Duration;

use rustix::process::Signal;
use rvm_protocol::ContainerId;

use super::lifecycle::{LifecycleError, failed};
use super::running::{NOT_RUNNING, refused};
use crate::dir::SandboxDir;
use crate::guest::agent::{Agent, AgentError};
use crate::host::process::{KILL_TIMEOUT, ProcessId};
use crate::sandbox::HANGUP_TIMEOUT;
use crate::state::{Container, State, StateError, Status};

/// How long a guest may take to end a container that is killed, on a busy host with a software CPU
/// too. Docker gives up 10 s after its SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The same in a pod, whose other containers would end as well.
const POD_KILL_GRACE: Duration = Duration::from_secs(8);

/// How long a monitor may take to exit once its container has ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the agent says of a container that it was to kill.
enum Told {
    Ended,
    /// The container had ended before.
    HadEnded,
}

/// Kills a container's init process, or with `all` every process of the container, and returns when
/// the container has ended: if its guest does not end it, with its machine.
pub(super) async fn kill(
    container: &Container,
    state: &State,
    all: bool,
) -> Result<(), LifecycleError> {
    let sandbox = match container.sandbox(state) {
        Err(StateError::NotFound(_)) => return Err(refused(NOT_RUNNING)),
        found => found?,
    };
    let grace = grace(state);
    let asked = ask(container, state, &sandbox, all);
    match tokio::time::timeout(grace, asked).await {
        Ok(Ok(Told::Ended)) => Ok(()),
        Ok(Ok(Told::HadEnded)) => Err(refused(NOT_RUNNING)),
        Ok(Err(error)) if is_own_lack(&error) => Err(error.into()),
        Ok(Err(error)) => kill_machine(state, &sandbox, &error.to_string()).await,
        Err(_) => {
            let late = format!(
                "its guest did not end it within {} s of SIGKILL",
                grace.as_secs()
            );
            kill_machine(state, &sandbox, &late).await
        }
    }
}

fn grace(state: &State) -> Duration {
    match state.sandbox {
        None => KILL_GRACE,
        Some(_) => POD_KILL_GRACE,
    }
}

async fn ask(
    container: &Container,
    state: &State,
    sandbox: &SandboxDir,
    all: bool,
) -> Result<Told, AgentError> {
    let agent = match Agent::connect(sandbox) {
        Err(AgentError::Connect(_)) if has_ended(sandbox).await => return Ok(Told::HadEnded),
        other => other?,
    };
    let signalled = match all {
        true => agent.signal_all(container.id(), libc::SIGKILL).await,
        false => agent.signal(&container.init(), libc::SIGKILL).await,
    };
    let told = match signalled {
        Ok(()) => Told::Ended,
        Err(AgentError::NotFound(_)) => Told::HadEnded,
        // Killed by another at the same time.
        Err(AgentError::Lost { .. }) if has_ended(sandbox).await => return Ok(Told::Ended),
        Err(error) => return Err(error),
    };
    match agent.wait(&container.init()).await {
        Ok(_) => Ok(told),
        // The owner has heard of the end first, and has ended the machine.
        Err(AgentError::Lost { .. }) if has_ended(sandbox).await => Ok(told),
        // A container that the agent does not know has been removed, unless the agent lies: then
        // the process that stands for the container goes on.
        Err(AgentError::NotFound(_)) => {
            stand_in_ended(state).await;
            Ok(told)
        }
        Err(error) => Err(error),
    }
}

/// Waits until the process has ended that has the container's pid.
async fn stand_in_ended(state: &State) {
    let pid = ProcessId::of(state.pid()).ok();
    if let Some(Ok(Some(process))) = pid.map(ProcessId::open) {
        let _ = process.ends_within(Duration::MAX).await;
    }
}

/// Whether a sandbox's machine has ended, or ends within [`HANGUP_TIMEOUT`].
pub(super) async fn has_ended(sandbox: &SandboxDir) -> bool {
    let machine = sandbox.machine();
    // The others end with the first.
    match machine.and_then(|machine| machine.first().map_or(Ok(None), |id| id.open())) {
        Ok(Some(process)) => process.ends_within(HANGUP_TIMEOUT).await.unwrap_or(false),
        Ok(None) => true,
        // Nobody knows.
        Err(_) => false,
    }
}

/// Kills the machine that a container is in, because it cannot be ended in another way.
async fn kill_machine(
    state: &State,
    sandbox: &SandboxDir,
    why: &str,
) -> Result<(), LifecycleError> {
    let id = &state.id;
    match &state.sandbox {
        None => tracing::warn!("container {id}: {why}; its machine is killed"),
        Some(pod) => tracing::error!(
            "container {id}: {why}; the machine of its pod is killed, and every container of pod \
             {pod} with it"
        ),
    }
    end_machine(sandbox, Some(state)).await
}

/// Removes a container from the sandbox that it has joined, if that still is there. A container
/// that may run yet, and that its guest does not remove, costs the pod.
pub async fn leave(
    container: &Container,
    state: &State,
    may_run: bool,
) -> Result<(), LifecycleError> {
    if state.sandbox.is_none() {
        return Ok(());
    }
    let sandbox = match container.sandbox(state) {
        Err(StateError::NotFound(_)) => return Ok(()),
        other => other?,
    };
    if let Some(why) = remove_from_guest(&sandbox, container.id()).await? {
        match may_run {
            true => kill_machine(state, &sandbox, &why).await?,
            false => tracing::warn!("container {}: {why}", container.id()),
        }
    }
    Ok(sandbox.unshare(container.id().as_str())?)
}

/// Whether this process lacks what it needs to ask the guest. Nothing follows from that about the
/// guest, whose machine others may need.
fn is_own_lack(error: &AgentError) -> bool {
    let AgentError::Connect(error) = error else {
        return false;
    };
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    error
        .raw_os_error()
        .is_some_and(|errno| lacks.contains(&errno))
}

/// Returns why a container stays in its guest, if it does.
async fn remove_from_guest(
    sandbox: &SandboxDir,
    id: &ContainerId,
) -> Result<Option<String>, AgentError> {
    let remove = async { Agent::connect(sandbox)?.remove_container(id).await };
    Ok(match tokio::time::timeout(POD_KILL_GRACE, remove).await {
        Ok(Ok(()) | Err(AgentError::NotFound(_))) => None,
        Ok(Err(error)) if is_own_lack(&error) => return Err(error),
        Ok(Err(AgentError::Connect(_) | AgentError::Lost { .. })) if has_ended(sandbox).await => {
            None
        }
        Ok(Err(error)) => Some(format!("its guest does not remove it: {error}")),
        Err(_) => Some(format!(
            "its guest did not remove it within {} s",
            POD_KILL_GRACE.as_secs()
        )),
    })
}

/// Ends the process that stands for a container. A shim stands for the other containers of its pod
/// as well: it stays, and notices by itself that this one has ended.
pub(super) async fn end_monitor(state: &State) -> Result<(), LifecycleError> {
    // A monitor that has written down the container's end is about to exit with its exit code.
    let grace = if state.status == Status::Stopped {
        EXIT_TIMEOUT
    } else {
        Duration::ZERO
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    match state.monitor.filter(|id| id.pid != own) {
        Some(id) if state.anchor_pid.is_none() => end_process(id, grace).await,
        _ => Ok(()),
    }
}

/// Kills the machine of a sandbox, if there is one. `state` is that of a container in it.
pub(super) async fn end_machine(
    sandbox: &SandboxDir,
    state: Option<&State>,
) -> Result<(), LifecycleError> {
    if let Some(cgroup) = state.and_then(|state| state.cgroup.as_ref()) {
        cgroup.thaw();
    }
    let path = sandbox.path().display();
    let machine = sandbox.machine();
    let machine = machine.map_err(failed(format!("find the machine's processes in {path}")))?;
    for id in machine {
        end_process(id, Duration::ZERO).await?;
    }
    Ok(())
}

/// Ends a process, by SIGKILL if it does not end by itself within `grace`.
pub async fn end_process(id: ProcessId, grace: Duration) -> Result<(), LifecycleError> {
    let end = async {
        let Some(process) = id.open()? else {
            return Ok(());
        };
        if process.ends_within(grace).await? {
            return Ok(());
        }
        process.signal(Signal::KILL)?;
        match process.ends_within(KILL_TIMEOUT).await? {
            true => Ok(()),
            false => Err(std::io::ErrorKind::TimedOut.into()),
        }
    };
    let ended = end.await;
    ended.map_err(failed(format!("end the container's process {}", id.pid)))
}
