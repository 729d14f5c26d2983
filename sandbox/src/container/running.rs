//! What can be asked of a running container: to stand still and to go on, and what it is doing.

use std::collections::BTreeSet;

use rvm_protocol::agent::{ListProcessesResponse, StatsResponse};

use crate::cgroup::Cgroup;
use crate::container::lifecycle::LifecycleError;
use crate::guest::agent::{Agent, AgentError, Events};
use crate::state::{Container, State, Status};

/// runc's words for a container that is over, or has not begun.
const NOT_RUNNING: &str = "container not running";

fn unfit(words: &str) -> LifecycleError {
    LifecycleError::FailedPrecondition(words.to_owned())
}

/// Makes every process of a running container stand still, and returns when they do.
pub async fn pause(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Running {
        return Err(unfit(NOT_RUNNING));
    }
    let agent = connect(container, &state)?;
    agent.pause(container.id()).await.map_err(gone)?;
    container.lock()?.step(Status::Paused, |_| {})?;
    Ok(())
}

/// Lets the processes of a paused container go on.
pub async fn resume(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Paused {
        return Err(unfit("container not paused"));
    }
    let agent = connect(container, &state)?;
    agent.resume(container.id()).await.map_err(gone)?;
    container.lock()?.step(Status::Running, |_| {})?;
    Ok(())
}

/// The processes of a container; none if it has stopped.
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

/// The processes of the host that run a container, by the host's numbers: its monitor, and those of its
/// machine. None if it has stopped.
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

/// What a container does, as it is to be reported for some time.
pub struct Observed<'a> {
    container: &'a Container,
    agent: Agent,
}

impl<'a> Observed<'a> {
    /// Begins to observe a container that runs.
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

    /// What it has used of the guest so far.
    pub async fn stats(&self) -> Result<StatsResponse, LifecycleError> {
        self.agent.stats(self.container.id()).await.map_err(gone)
    }

    /// What happens from now on, to it and to the others in its sandbox.
    pub async fn events(&self) -> Result<Events, LifecycleError> {
        Ok(self.agent.events().await?)
    }
}

/// Connects to the agent of a container's sandbox.
pub(crate) fn connect(container: &Container, state: &State) -> Result<Agent, LifecycleError> {
    Agent::connect(&container.sandbox(state)?).map_err(|error| match error {
        // Nobody listens there any more.
        AgentError::Connect(_) => unfit(NOT_RUNNING),
        other => other.into(),
    })
}

/// An agent that is not there, or knows no such container, says that it has ended meanwhile.
pub(crate) fn gone(error: AgentError) -> LifecycleError {
    match error {
        AgentError::NotFound(_) | AgentError::Lost { .. } => unfit(NOT_RUNNING),
        other => other.into(),
    }
}
