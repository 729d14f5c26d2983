//! The process that stands for a container on the host: it starts the machine or joins one, holds the
//! container's standard streams, and ends with its exit code. Its pid is the container's to everyone.
//!
//! ```text
//!   start a sandbox ─┬─> create ──> ready ──> supervise ──> drain ──> tear down
//!   or join one ─────┘     │          │                                   ^
//!         └────────────────┴──────────┴───────────────────────────────────┘
//!                    a failure, or a signal to end
//! ```

pub mod exec;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::anchor::PidAnchor;
use crate::cgroup::{Cgroup, CgroupError, Driver};
use crate::config::Config;
use crate::container::cgroup::{self, ContainerCgroupError};
use crate::container::lifecycle::leave;
use crate::container::monitor_process::Starter;
use crate::container::start::{Place, Placement, Start, StartError, take_network};
use crate::control::Server;
use crate::engine::MachineEnd;
use crate::guest::agent::{Agent, AgentError};
use crate::guest::descriptors::ExtraFd;
use crate::guest::stdio::{HostStdio, Relay};
use crate::host::process::{self, ProcessId};
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal, TerminalError};
use crate::host::timings::Timings;
use crate::network::Namespace;
use crate::sandbox::Guest;
use crate::share;
use crate::spec::Bundle;
use crate::state::{Container, StateError, Status};
use rvm_sys::error_chain::chain;

/// What a shell reports of a container whose machine is gone: as if killed by SIGKILL, which is what
/// has happened to its processes.
pub const EXIT_MACHINE_GONE: u8 = 128 + libc::SIGKILL as u8;

/// How long a machine may outlive its agent's connection.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A container could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// This process itself.
    #[error("cannot {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// The terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// The control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container's control groups.
    #[error(transparent)]
    ContainerCgroup(#[from] ContainerCgroupError),
    /// The container or its sandbox.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A signal came before the container was ready.
    #[error("interrupted by signal {0} while the sandbox was starting")]
    Interrupted(i32),
    /// Whoever waited for the container to be ready is gone.
    #[error("given up while the sandbox was starting")]
    Abandoned,
}

fn process_failed(action: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Process { action, source }
}

/// What a monitor is to do.
pub struct Order<'a> {
    /// The container, whose state is `Creating`.
    pub container: &'a Container,
    /// What it is made of.
    pub bundle: &'a Bundle,
    /// rvm's configuration.
    pub config: &'a Config,
    /// Who makes its control groups.
    pub driver: Driver,
    /// Where to send the terminal, if an engine wants it.
    pub console_socket: Option<PathBuf>,
    /// Where to send a pidfd of this process, if somebody wants it.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors beyond the standard streams.
    pub extra: Vec<ExtraFd>,
    /// Who waits.
    pub mode: Mode<'a>,
    /// This process's first thread; whoever carries the order out is another.
    pub anchor: &'a PidAnchor,
}

/// Who waits for a monitor.
pub enum Mode<'a> {
    /// A program that receives a report when the container is created, and then goes away. Another
    /// starts the container.
    Detached(&'a Starter),
    /// The user: the container is started at once.
    Foreground,
}

/// A container's life, seen from the host: returns its exit code.
pub async fn run(mut order: Order<'_>, timings: &mut Timings) -> Result<u8, MonitorError> {
    let signals = Signals::block().map_err(process_failed("block signals"))?;
    let home = Cgroup::own()?;
    claim(order.container)?;
    let extra = std::mem::take(&mut order.extra);
    let result = live(&order, extra, &signals, timings).await;
    let exit_status = result.as_ref().ok().copied();
    let torn_down = tear_down(order.container, exit_status).await;
    if let Mode::Foreground = order.mode {
        // This process is about to delete the container, and its groups with it.
        home.rejoin()?;
    }
    timings.lap("tear down");
    let status = result?;
    torn_down?;
    Ok(status)
}

/// From now on the container is this process's.
fn claim(container: &Container) -> Result<(), MonitorError> {
    let own = ProcessId::own().map_err(process_failed("find out the own pid"))?;
    Ok(container.lock()?.claim(own)?)
}

async fn live(
    order: &Order<'_>,
    extra: Vec<ExtraFd>,
    signals: &Signals,
    timings: &mut Timings,
) -> Result<u8, MonitorError> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    cgroup::enter(order.container, order.bundle, order.driver, &[own])?;
    let program = order.bundle.spec.process().as_ref();
    let terminal = program.and_then(|program| program.terminal()) == Some(true);
    let (host, raw) = host_stdio(terminal, order.console_socket.as_deref())?;
    let host = host.with(extra);
    let outside = Namespace::own().map_err(process_failed("find the host's network namespace"))?;
    let (namespace, placement) = take_network(order.bundle).map_err(StartError::from)?;
    let entered = namespace.enter();
    let entered = entered.and_then(|()| order.anchor.enter(&namespace));
    entered.map_err(process_failed("enter the container's network namespace"))?;
    let (place, relay) = tokio::select! {
        started = start(order, &outside, placement, host, timings) => started?,
        signal = interrupted(signals) => return Err(MonitorError::Interrupted(signal)),
        () = abandoned(&order.mode) => return Err(MonitorError::Abandoned),
    };
    if let Some(terminal) = &raw {
        // It may have changed while nobody listened.
        let size = terminal.size();
        let id = order.container.id();
        let _ = place.guest().agent().resize(id, size.rows, size.cols).await;
    }
    if let Some(socket) = &order.pidfd_socket {
        process::send_own_pidfd(socket).map_err(process_failed("send a pidfd to its socket"))?;
    }
    if let Mode::Detached(starter) = order.mode {
        report_ready(starter)?;
    }
    let status = supervise(order.container.id(), &place, signals, raw.as_ref()).await;
    timings.lap("run the container");
    // A reader that never reads keeps the output, and this process, as long as nobody ends it.
    tokio::select! {
        () = relay.drained() => {}
        signal = interrupted(signals) => tracing::debug!("output was given up: signal {signal}"),
    }
    Ok(status)
}

/// Everything up to a container that runs, or that another process starts.
async fn start(
    order: &Order<'_>,
    outside: &Namespace,
    placement: Placement,
    host: HostStdio,
    timings: &mut Timings,
) -> Result<(Place, Relay), MonitorError> {
    let start = Start {
        container: order.container,
        bundle: order.bundle,
        config: order.config,
        driver: order.driver,
        outside,
        anchor: order.anchor,
    };
    let (place, relay) = start.create(placement, host, timings).await?;
    if let Mode::Foreground = order.mode {
        start.start(place.guest(), timings).await?;
    }
    Ok((place, relay))
}

/// The host's ends of a process's streams. The second value keeps the terminal in raw mode.
pub(crate) fn host_stdio(
    terminal: bool,
    console_socket: Option<&Path>,
) -> Result<(HostStdio, Option<RawTerminal>), MonitorError> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(process_failed("dup the standard streams"))
    };
    if !terminal {
        return Ok((
            HostStdio::Streams {
                stdin: own(io::stdin().as_fd())?,
                stdout: own(io::stdout().as_fd())?,
                stderr: own(io::stderr().as_fd())?,
            },
            None,
        ));
    }
    let (input, output): (OwnedFd, OwnedFd) = match console_socket {
        Some(socket) => {
            let slave = terminal::open_for_engine(socket)?;
            terminal::detach_standard_streams()?;
            (own(slave.as_fd())?, slave)
        }
        None => (own(io::stdin().as_fd())?, own(io::stdout().as_fd())?),
    };
    let raw = RawTerminal::new(input.as_fd())?;
    let size = raw.size();
    Ok((
        HostStdio::Terminal {
            input,
            output,
            size,
        },
        Some(raw),
    ))
}

/// Returns when a signal asks this process to end. Others are nothing to a container that is not
/// there yet.
pub(crate) async fn interrupted(signals: &Signals) -> i32 {
    loop {
        match signals.next().await {
            Ok(signal @ (libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)) => {
                return signal;
            }
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}

/// Returns when the program that waits for the container has gone.
pub(crate) async fn abandoned(mode: &Mode<'_>) {
    match mode {
        Mode::Detached(starter) => starter.gone().await,
        Mode::Foreground => std::future::pending().await,
    }
}

/// Reports to the program that waits that the container is created.
pub(crate) fn report_ready(starter: &Starter) -> Result<(), MonitorError> {
    let reported = starter.report_ready();
    reported.map_err(process_failed("report that the container is created"))
}

/// Passes signals on until the container's init process has ended; returns its exit code. The owner of
/// the sandbox serves it meanwhile.
async fn supervise(
    id: &str,
    place: &Place,
    signals: &Signals,
    terminal: Option<&RawTerminal>,
) -> u8 {
    let guest = place.guest();
    let server = place.sandbox().map(|sandbox| Server::new(sandbox));
    let service = async {
        if let Some(server) = &server {
            let error = server.serve().await;
            tracing::error!("{}", chain(&error));
        }
        std::future::pending::<()>().await;
    };
    let mut service = std::pin::pin!(service);
    let mut exit = std::pin::pin!(guest.agent().wait(id));
    let end = loop {
        tokio::select! {
            biased;
            exited = &mut exit => match exited {
                Ok(status) => {
                    if let Some(server) = &server {
                        // The process that asked for the start may not have its answer yet.
                        let answered = tokio::time::timeout(END_TIMEOUT, server.all_answered());
                        tokio::select! { _ = answered => {}, () = &mut service => {} }
                    }
                    return status;
                }
                Err(error) => break after_silence(guest, &error).await,
            },
            end = guest.ended() => break end,
            signal = signals.next() => pass_on(guest.agent(), id, signal, terminal),
            () = &mut service => {}
        }
    };
    match end {
        // Switching the machine off is one way for a container to end.
        MachineEnd::PowerOff => tracing::info!("{end}"),
        _ => tracing::error!("{}", guest.explain_end(&end)),
    }
    EXIT_MACHINE_GONE
}

/// The agent hung up. Its machine ends with it, unless the agent lies.
async fn after_silence(guest: &Guest, error: &AgentError) -> MachineEnd {
    match tokio::time::timeout(END_TIMEOUT, guest.ended()).await {
        Ok(end) => end,
        Err(_) => MachineEnd::Failed(error.to_string()),
    }
}

/// Hands a signal to the container, or tells its terminal of a new size. The answer is not waited
/// for: a container that is about to end may give none.
fn pass_on(agent: &Agent, id: &str, signal: io::Result<i32>, terminal: Option<&RawTerminal>) {
    let Ok(signal) = signal else { return };
    let (agent, id) = (agent.clone(), id.to_owned());
    let size = terminal.map(RawTerminal::size);
    tokio::spawn(async move {
        let passed = match size {
            Some(size) if signal == libc::SIGWINCH => agent.resize(&id, size.rows, size.cols).await,
            _ => agent.signal(&id, signal, false).await,
        };
        if let Err(error) = passed {
            tracing::debug!("signal {signal} was not passed on: {error}");
        }
    });
}

/// Takes away everything but the state, which says how the container ended.
async fn tear_down(container: &Container, exit_status: Option<u8>) -> Result<(), MonitorError> {
    let left = leave(container, &container.state()?).await;
    if let Err(error) = left.and_then(|()| Ok(share::remove(container.path())?)) {
        tracing::warn!("{error}");
    }
    let locked = container.lock()?;
    locked.step(Status::Stopped, |state| state.exit_status = exit_status)?;
    Ok(())
}
