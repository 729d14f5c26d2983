//! The verbs of a running container: pause, resume, ps and events.

use std::collections::BTreeSet;
use std::ops::Add;

use rvm_protocol::agent::{IoStats, ListProcessesResponse, StatsResponse};

use crate::cgroup::Cgroup;
use crate::container::ending::has_ended;
use crate::container::lifecycle::{LifecycleError, failed};
use crate::guest::agent::{Agent, AgentError, Events};
use crate::host::process::ProcessId;
use crate::state::{Container, State, Status};
use rvm_sys::fault_point;

/// runc's words for a container that has stopped, or has not started.
pub(super) const NOT_RUNNING: &str = "container not running";

pub(super) fn refused(words: &str) -> LifecycleError {
    LifecycleError::FailedPrecondition(words.to_owned())
}

/// Freezes the processes of a running container; returns when they are frozen.
pub async fn pause(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Running {
        return Err(refused(NOT_RUNNING));
    }
    let agent = connect(container, &state).await?;
    explained(container, &state, agent.pause(container.id()).await).await?;
    fault_point!("pause.frozen").map_err(failed("pause the container"))?;
    container.lock()?.step(Status::Paused, |_| {})?;
    Ok(())
}

/// Thaws the processes of a paused container.
pub async fn resume(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    if state.status() != Status::Paused {
        return Err(refused("container not paused"));
    }
    let agent = connect(container, &state).await?;
    explained(container, &state, agent.resume(container.id()).await).await?;
    fault_point!("resume.thawed").map_err(failed("resume the container"))?;
    container.lock()?.step(Status::Running, |_| {})?;
    Ok(())
}

/// The processes of a container by their pids in the guest; none if it has stopped.
pub async fn processes(container: &Container) -> Result<ListProcessesResponse, LifecycleError> {
    let state = container.state()?;
    match state.status() {
        Status::Stopped | Status::Creating => Ok(ListProcessesResponse::new()),
        Status::Created | Status::Running | Status::Paused => {
            let agent = connect(container, &state).await?;
            explained(container, &state, agent.processes(container.id()).await).await
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
    state: State,
    agent: Agent,
}

impl<'a> Observed<'a> {
    /// Connects to the agent of a container that runs.
    pub async fn new(container: &'a Container) -> Result<Self, LifecycleError> {
        let state = container.state()?;
        match state.status() {
            Status::Stopped | Status::Creating => Err(LifecycleError::FailedPrecondition(format!(
                "container with id {} is not running",
                container.id()
            ))),
            Status::Created | Status::Running | Status::Paused => Ok(Self {
                agent: connect(container, &state).await?,
                container,
                state,
            }),
        }
    }

    /// What the container has used of the guest so far. The block I/O is what its machine has read
    /// from and written to the host's storage: to the guest, shared files are no block devices.
    ///
    /// In a pod it is that of all containers, and the first container, whose machine it is, has it.
    pub async fn stats(&self) -> Result<StatsResponse, LifecycleError> {
        let stats = self.agent.stats(self.container.id()).await;
        let mut stats = explained(self.container, &self.state, stats).await?;
        if self.state.sandbox.is_none() {
            stats.io = self.machine_io()?;
        }
        Ok(stats)
    }

    /// The storage I/O of the machine's processes, of no device in particular.
    fn machine_io(&self) -> Result<Vec<IoStats>, LifecycleError> {
        let record = self.container.sandbox(&self.state)?.record();
        let record = record.map_err(failed("find the machine's processes"))?;
        let processes = record.into_iter().flat_map(|record| record.machine);
        let counted = processes.filter_map(ProcessId::storage_io).reduce(Add::add);
        let stats = counted.map(|io| IoStats {
            rbytes: io.read,
            wbytes: io.written,
            ..Default::default()
        });
        Ok(stats.into_iter().collect())
    }

    /// The events from now on, of the container and of the others in its sandbox.
    pub async fn events(&self) -> Result<Events, LifecycleError> {
        Ok(self.agent.events().await?)
    }
}

/// Connects to the agent of a container's sandbox.
pub(crate) async fn connect(container: &Container, state: &State) -> Result<Agent, LifecycleError> {
    let agent = Agent::connect(&container.sandbox(state)?);
    explained(container, state, agent).await
}

/// What an agent's answer means. One that does not know the container, or whose machine has ended,
/// means that the container has ended meanwhile. From one that is late or has hung up alone nothing
/// follows about the container.
pub(crate) async fn explained<T>(
    container: &Container,
    state: &State,
    answer: Result<T, AgentError>,
) -> Result<T, LifecycleError> {
    let ended = match &answer {
        Err(AgentError::NotFound(_)) => true,
        Err(AgentError::Connect(_) | AgentError::Lost { .. }) => {
            has_ended(&container.sandbox(state)?).await
        }
        _ => false,
    };
    match ended {
        true => Err(refused(NOT_RUNNING)),
        false => Ok(answer?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::config::EngineKind;
    use crate::dir::Record;
    use crate::state::Store;

    const CALL: &str = "signal process";

    fn late() -> AgentError {
        let limit = Duration::from_secs(10);
        AgentError::TimedOut { call: CALL, limit }
    }

    fn lost() -> AgentError {
        let reason = "closed".to_owned();
        AgentError::Lost { call: CALL, reason }
    }

    /// What `error` means for a container whose machine this process runs.
    async fn explain(error: AgentError, machine: &[ProcessId]) -> String {
        let root = tempfile::tempdir().unwrap();
        let container = Store::new(root.path().to_owned()).create("web").unwrap();
        let text = r#"{"ociVersion":"1.0.2","id":"web","status":"running","bundle":"/","rootfs":"/",
            "created":"","owner":0,"terminal":false,"monitor":null,"sandbox":null,"guestPid":1,
            "exitStatus":null}"#;
        let state: State = serde_json::from_str(text).unwrap();
        let record = Record::new(machine.to_vec(), EngineKind::Qemu, Duration::ZERO);
        let sandbox = container.sandbox(&state).unwrap();
        sandbox.write_record(&record).unwrap();
        let explained = explained::<()>(&container, &state, Err(error)).await;
        explained.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn an_agent_that_is_late_or_has_hung_up_alone_does_not_mean_that_the_container_has_ended()
    {
        let alive = [ProcessId::own().unwrap()];
        let told = explain(late(), &alive).await;
        assert!(told.contains("signal process within 10s"), "{told}");
        let told = explain(lost(), &alive).await;
        assert!(told.contains("did not answer signal process"), "{told}");
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_with_its_machine_means_that_the_container_has_ended() {
        assert_eq!(explain(lost(), &[]).await, NOT_RUNNING);
    }
}
