//! A process that is added to a running container, and the process of this host that stands for it:
//! that one holds the streams, passes signals on, and ends with the exit code.

use std::io;
use std::path::PathBuf;

use oci_spec::runtime::Process;

use crate::container::lifecycle::{self, LifecycleError};
use crate::guest::agent::{Agent, AgentError, Exec};
use crate::guest::descriptors::ExtraFd;
use crate::guest::stdio::{Relay, StdioError};
use crate::host::process;
use crate::host::signals::Signals;
use crate::host::terminal::RawTerminal;
use crate::monitor::{
    EXIT_MACHINE_GONE, Mode, MonitorError, abandoned, host_stdio, interrupted, report_ready,
};
use crate::state::{Container, StateError, Status};

/// A process could not be added.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Signals cannot be waited for.
    #[error("cannot block signals")]
    Signals(#[source] io::Error),
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// What a monitor does too.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The pid file.
    #[error(transparent)]
    PidFile(#[from] LifecycleError),
    /// A pidfd cannot be sent.
    #[error("cannot send a pidfd to its socket")]
    Pidfd(#[source] io::Error),
    /// An id for the process.
    #[error("cannot make an id for the process")]
    Id(#[source] io::Error),
    /// The container is not where it needs to be.
    #[error("{0}")]
    FailedPrecondition(&'static str),
    /// A signal came before the process ran.
    #[error("interrupted by signal {0} while the process was starting")]
    Interrupted(i32),
    /// Whoever waited for the process to run is gone.
    #[error("given up while the process was starting")]
    Abandoned,
}

/// What is to be run, and how.
pub struct Order<'a> {
    /// In which container.
    pub container: &'a Container,
    /// The process.
    pub process: &'a Process,
    /// Where to send the terminal, if an engine wants it.
    pub console_socket: Option<PathBuf>,
    /// Where to send a pidfd of this process, if somebody wants it.
    pub pidfd_socket: Option<PathBuf>,
    /// Where to write this process's id once the other runs.
    pub pid_file: Option<PathBuf>,
    /// Wait for a paused container to be resumed.
    pub ignore_paused: bool,
    /// The group below the container's own in the guest to start in; empty for that one.
    pub cgroup: &'a str,
    /// Descriptors beyond the standard streams.
    pub extra: Vec<ExtraFd>,
    /// Who waits.
    pub mode: Mode<'a>,
}

/// Runs a process to its end; returns its exit code.
pub async fn run(mut order: Order<'_>) -> Result<u8, ExecError> {
    let signals = Signals::block().map_err(ExecError::Signals)?;
    let state = order.container.state()?;
    check(state.status(), order.ignore_paused)?;
    let sandbox = order.container.sandbox(&state)?;
    let terminal = order.process.terminal().unwrap_or(false);
    let (host, raw) = host_stdio(terminal, order.console_socket.as_deref())?;
    let host = host.with(std::mem::take(&mut order.extra));
    let agent = Agent::connect(&sandbox)?;
    let (relay, stdio) = Relay::start(&sandbox, host)?;
    let running = Running {
        agent,
        container: order.container.id(),
        id: new_id().map_err(ExecError::Id)?,
        terminal: raw,
    };
    let exec = Exec {
        container: running.container,
        id: &running.id,
        process: order.process,
        stdio,
        ignore_paused: order.ignore_paused,
        cgroup: order.cgroup,
    };
    tokio::select! {
        started = running.agent.exec(exec) => started?,
        signal = interrupted(&signals) => return Err(ExecError::Interrupted(signal)),
        () = abandoned(&order.mode) => return Err(ExecError::Abandoned),
    };
    running.adjust_terminal().await;
    if let Err(error) = announce(&order) {
        running.kill().await;
        return Err(error);
    }
    let status = running.supervise(&signals).await;
    // A reader that never reads keeps the output, and this process, as long as nobody ends it.
    tokio::select! {
        () = relay.drained() => {}
        signal = interrupted(&signals) => tracing::debug!("output was given up: signal {signal}"),
    }
    running.forget().await;
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

/// Tells whoever wants to know that the process runs.
fn announce(order: &Order<'_>) -> Result<(), ExecError> {
    if let Some(socket) = &order.pidfd_socket {
        process::send_own_pidfd(socket).map_err(ExecError::Pidfd)?;
    }
    if let Some(path) = &order.pid_file {
        lifecycle::write_pid_file(path, std::process::id())?;
    }
    match &order.mode {
        Mode::Detached(starter) => Ok(report_ready(starter)?),
        Mode::Foreground => Ok(()),
    }
}

/// An id that no other process of the container has.
fn new_id() -> io::Result<String> {
    let mut id = [0; 8];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("exec-{:016x}", u64::from_ne_bytes(id)))
}

/// A process that runs.
struct Running<'a> {
    agent: Agent,
    container: &'a str,
    id: String,
    terminal: Option<RawTerminal>,
}

impl Running<'_> {
    /// The terminal's size may have changed while nobody listened.
    async fn adjust_terminal(&self) {
        if let Some(terminal) = &self.terminal {
            let (size, id) = (terminal.size(), &self.id);
            let agent = &self.agent;
            let resized = agent.resize_process(self.container, id, size.rows, size.cols);
            let _ = resized.await;
        }
    }

    async fn kill(&self) {
        let (agent, id) = (&self.agent, &self.id);
        let killed = agent.signal_process(self.container, id, libc::SIGKILL);
        let _ = killed.await;
    }

    /// Passes signals on until the process has ended; returns its exit code.
    async fn supervise(&self, signals: &Signals) -> u8 {
        let mut exit = std::pin::pin!(self.agent.wait_process(self.container, &self.id));
        loop {
            tokio::select! {
                biased;
                exited = &mut exit => return match exited {
                    Ok(exit) => exit.status,
                    Err(error) => {
                        tracing::error!("the container ended while the process ran: {error}");
                        EXIT_MACHINE_GONE
                    }
                },
                signal = signals.next() => self.pass_on(signal),
            }
        }
    }

    /// Hands a signal to the process, or tells its terminal of a new size. The answer is not waited
    /// for: a process that is about to end may give none.
    fn pass_on(&self, signal: io::Result<i32>) {
        let Ok(signal) = signal else { return };
        let (agent, id) = (self.agent.clone(), self.id.clone());
        let container = self.container.to_owned();
        let size = self.terminal.as_ref().map(RawTerminal::size);
        tokio::spawn(async move {
            let passed = match size {
                Some(size) if signal == libc::SIGWINCH => {
                    agent
                        .resize_process(&container, &id, size.rows, size.cols)
                        .await
                }
                _ => agent.signal_process(&container, &id, signal).await,
            };
            if let Err(error) = passed {
                tracing::debug!("signal {signal} was not passed on: {error}");
            }
        });
    }

    /// Lets the agent forget the process. If the machine has gone, so has what it remembered.
    async fn forget(&self) {
        let removed = self.agent.remove_process(self.container, &self.id).await;
        if let Err(error) = removed {
            tracing::debug!("process {}: {error}", self.id);
        }
    }
}
