//! A process that is added to a running container, seen from the process of this host that stands
//! for it: that one holds the streams, passes signals on, and ends with the exit code.

use std::io;
use std::path::PathBuf;

use oci_spec::runtime::Process;
use rvm_protocol::{ExecId, ProcessId};

use super::caller::{Caller, interrupted};
use super::process::{GuestProcess, drain};
use super::{EXIT_MACHINE_GONE, MonitorError, process_failed};
use crate::container::lifecycle::{self, LifecycleError};
use crate::guest::agent::{Agent, AgentError, Exec};
use crate::guest::document::Document;
use crate::guest::stdio::{Relay, StdioError};
use crate::host::signals::Signals;
use crate::state::{Container, StateError, Status};
use rvm_sys::fault_point;

/// A process could not be added.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container's state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// What every monitor does has failed.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The streams could not be connected.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The agent did not add the process.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The pid file could not be written.
    #[error(transparent)]
    PidFile(#[from] LifecycleError),
    /// The container is in a state in which no process can be added.
    #[error("{0}")]
    FailedPrecondition(&'static str),
    /// A signal came before the process ran.
    #[error("interrupted by signal {0} while the process was starting")]
    Interrupted(i32),
    /// The program that waited for the process has gone.
    #[error("given up while the process was starting")]
    Abandoned,
}

/// The process that is added, and how.
pub struct Order<'a> {
    /// The container that it is added to.
    pub container: &'a Container,
    /// The process as config.json would have it.
    pub process: &'a Process,
    /// A file for this process's id, written once the other runs.
    pub pid_file: Option<PathBuf>,
    /// Wait for a paused container to be resumed.
    pub ignore_paused: bool,
    /// The group below the container's own in the guest to start in; empty for that one.
    pub cgroup: &'a str,
    /// The program that asked for the process.
    pub caller: Caller<'a>,
}

/// Runs a process to its end; returns its exit code.
pub async fn run(mut order: Order<'_>) -> Result<u8, ExecError> {
    let signals = Signals::block().map_err(process_failed("block signals"))?;
    let state = order.container.state()?;
    check(state.status(), order.ignore_paused)?;
    let sandbox = order.container.sandbox(&state)?;
    fault_point!("exec.checked").map_err(process_failed("add the process"))?;
    let has_terminal = order.process.terminal().unwrap_or(false);
    let (host, terminal) = order.caller.take_streams(has_terminal)?;
    fault_point!("exec.streams").map_err(process_failed("add the process"))?;
    let agent = Agent::connect(&sandbox)?;
    let (mut relay, stdio) = Relay::start(&sandbox, host)?;
    let container = order.container.id();
    fault_point!("exec.connected").map_err(process_failed("add the process"))?;
    let id = new_id().map_err(process_failed("make an id for the process"))?;
    let exec = Exec {
        container,
        id: &id,
        process: Document::send(&sandbox, order.process)?,
        stdio,
        ignore_paused: order.ignore_paused,
        cgroup: order.cgroup,
    };
    tokio::select! {
        started = agent.exec(exec) => started?,
        signal = interrupted(&signals) => return Err(ExecError::Interrupted(signal)),
        () = order.caller.gone() => return Err(ExecError::Abandoned),
    };
    let process = GuestProcess {
        agent,
        id: ProcessId {
            container: container.clone(),
            exec: Some(id.clone()),
        },
        terminal,
    };
    process.fit_terminal().await;
    if let Err(error) = announce(&order) {
        let _ = process.agent.signal(&process.id, libc::SIGKILL).await;
        return Err(error);
    }
    let status = supervise(&process, &signals, &mut relay).await;
    fault_point!("exec.ended").map_err(process_failed("end the process"))?;
    drain(relay, &signals).await;
    // If the machine has ended, its agent has nothing left to forget.
    if let Err(error) = process.agent.remove_process(container, &id).await {
        tracing::debug!("process {}: {error}", process.id);
    }
    Ok(status)
}

/// Refuses what the agent would refuse, without asking a machine that may not answer any more. The
/// words are runc's.
fn check(status: Status, ignore_paused: bool) -> Result<(), ExecError> {
    match status {
        Status::Stopped => Err(ExecError::FailedPrecondition(
            "cannot exec in a stopped container",
        )),
        Status::Paused if !ignore_paused => Err(ExecError::FailedPrecondition(
            "cannot exec in a paused container (use --ignore-paused to override)",
        )),
        Status::Creating => Err(ExecError::FailedPrecondition(
            "cannot exec in a container that is still being created",
        )),
        Status::Created | Status::Running | Status::Paused => Ok(()),
    }
}

/// Reports that the process runs, in all the ways that were asked for.
fn announce(order: &Order<'_>) -> Result<(), ExecError> {
    fault_point!("exec.started").map_err(process_failed("tell of the process"))?;
    order.caller.send_pidfd()?;
    if let Some(path) = &order.pid_file {
        lifecycle::write_pid_file(path, std::process::id())?;
    }
    Ok(order.caller.report_ready()?)
}

/// An id that no other process of the container has.
fn new_id() -> io::Result<ExecId> {
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let id = ExecId::new(format!("exec-{:016x}", u64::from_ne_bytes(id)));
    id.map_err(io::Error::other)
}

/// Passes signals on until the process has ended; returns its exit code.
async fn supervise(process: &GuestProcess, signals: &Signals, relay: &mut Relay) -> u8 {
    let exited = process.agent.stand_for(&process.id);
    match process.pass_signals_until(exited, signals, relay).await {
        Ok(exit) => exit.status,
        Err(error) => {
            tracing::error!("the container ended while the process ran: {error}");
            EXIT_MACHINE_GONE
        }
    }
}
