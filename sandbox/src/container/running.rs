//! The verbs of a running container: pause, resume, ps and events.

use std::collections::BTreeSet;

use rvm_protocol::agent::{ListProcessesResponse, StatsResponse};

use crate::cgroup::Cgroup;
use crate::container::lifecycle::LifecycleError;
use crate::guest::agent::{Agent, AgentError, Events};
use crate::state::{Container, State, Status};

/// runc's words for a container that has stopped, or has not started.
const NOT_RUNNING: &str = "container not running";

fn refused(words: &str) -> LifecycleError {
    LifecycleError::FailedPrecondition(words.to_owned())
}

/// Freezes the processes of a running container; returns when they are frozen.
pub async fn pause(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Running {
        return Err(refused(NOT_RUNNING));
    }
    let agent = connect(container, &state)?;
    agent.pause(container.id()).await.map_err(gone)?;
    container.lock()?.step(Status::Paused, |_| {})?;
    Ok(())
}

/// Thaws the processes of a paused container.
pub async fn resume(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Paused {
        return Err(refused("container not paused"));
    }
    let agent = connect(container, &state)?;
    agent.resume(container.id()).await.map_err(gone)?;
    container.lock()?.step(Status::Running, |_| {})?;
    Ok(())
}

/// The processes of a container by their pids in the guest; none if it has stopped.
pub async fn processes(container: &Container) -> Result<ListProcessesResponse, LifecycleError> {
    let state = container.state()?;
    match state.status() {
        Status::Stopped | Status::Creating => Ok(ListProcessesResponse::new()),
        Status::Created | Status::Running | Status::Paused => {
            let agent = connect(container, &state)?;
            agent.processes(container.id()).await.map_err(gone)
        }
    }
}

/// The pids of the host's processes that run a container: those in its cgroups, and its own pid.
/// None if it has stopped.
pub fn host_processes(container: &Container) -> Result<BTreeSet<i32>, LifecycleError> {
    let state = container.state()?;
    if let Status::Stopped | Status::Creating = state.status() {
        return Ok(BTreeSet::new());
    }
    let groups = state.cgroup.as_ref().map(Cgroup::processes).transpose()?;
    let mut processes = groups.unwrap_or_default();
    processes.insert(state.pid());
    Ok(processes)
}

/// A running container whose statistics and events are read for some time.
pub struct Observed<'a> {
    container: &'a Container,
    agent: Agent,
}

impl<'a> Observed<'a> {
    /// Connects to the agent of a container that runs.
    pub fn new(container: &'a Container) -> Result<Self, LifecycleError> {
        let state = container.state()?;
        match state.status() {
            Status::Stopped | Status::Creating => Err(LifecycleError::FailedPrecondition(format!(
                "container with id {} is not running",
                container.id()
            ))),
            Status::Created | Status::Running | Status::Paused => Ok(Self {
                agent: connect(container, &state)?,
                container,
            }),
        }
    }

    /// What the container has used of the guest so far.
    pub async fn stats(&self) -> Result<StatsResponse, LifecycleError> {
        self.agent.stats(self.container.id()).await.map_err(gone)
    }

    /// The events from now on, of the container and of the others in its sandbox.
    pub async fn events(&self) -> Result<Events, LifecycleError> {
        Ok(self.agent.events().await?)
    }
}

/// Connects to the agent of a container's sandbox.
pub(crate) fn connect(container: &Container, state: &State) -> Result<Agent, LifecycleError> {
    Agent::connect(&container.sandbox(state)?).map_err(|error| match error {
        // The machine has ended.
        AgentError::Connect(_) => refused(NOT_RUNNING),
        other => other.into(),
    })
}

/// An agent that is gone, or does not know the container, means that the container has ended
/// meanwhile.
pub(crate) fn gone(error: AgentError) -> LifecycleError {
    match error {
        AgentError::NotFound(_) | AgentError::Lost { .. } => refused(NOT_RUNNING),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_agent_that_is_late_does_not_mean_that_the_container_has_ended() {
        let (call, limit) = ("signal process", Duration::from_secs(60));
        let late = gone(AgentError::TimedOut { call, limit }).to_string();
        assert!(late.contains("signal process within 60s"), "{late}");
        let reason = "closed".to_owned();
        let lost = gone(AgentError::Lost { call, reason }).to_string();
        assert_eq!(lost, NOT_RUNNING);
    }
}
