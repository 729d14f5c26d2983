//! The process that stands for a container on the host: it starts the machine or joins one, holds
//! the container's standard streams, and ends with its exit code. Its pid is the container's to
//! everyone.
//!
//! ```text
//!   start a sandbox ─┬─> create ──> ready ──> supervise ──> drain ──> tear down
//!   or join one ─────┘     │          │                                   ^
//!         └────────────────┴──────────┴───────────────────────────────────┘
//!                    a failure, or a signal to end
//! ```

mod caller;
pub mod exec;
mod process;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::anchor::PidAnchor;
use crate::cgroup::{Cgroup, CgroupError, Driver};
use crate::checkpoint::Image;
use crate::config::Config;
use crate::container::cgroup::{self, ContainerCgroupError};
use crate::container::ending::leave;
use crate::container::start::{Place, Placement, Start, StartError, plan_machine, take_network};
use crate::control::Server;
use crate::engine::MachineEnd;
use crate::guest::agent::Exit;
use crate::guest::stdio::{HostStdio, Relay};
use crate::host::process::ProcessId;
use crate::host::signals::Signals;
use crate::host::terminal::TerminalError;
use crate::host::timings::Timings;
use crate::network::Namespace;
use crate::share;
use crate::spec::Bundle;
use crate::state::{Container, State, StateError, Status};
use caller::interrupted;
use process::{GuestProcess, settle};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;
use rvm_sys::process_memory;

pub use caller::{Caller, Mode};

/// What a shell reports of a container whose machine is gone: as if killed by SIGKILL, which is
/// what has happened to its processes.
pub const EXIT_MACHINE_GONE: u8 = Exit::KILLED;

/// How long the process that asked for a start may take to read its answer once the container has
/// ended.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a container has run when its monitor gives back the memory of its start. One that ends
/// earlier would pay for it in vain.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// A container could not be run.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A system call about this process failed.
    #[error("cannot {action}")]
    Process {
        /// What it was for, in the infinitive.
        action: &'static str,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// The container's state could not be read or changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The terminal could not be opened, sent or changed.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// This process could not find its cgroups, or not go back to them.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container's cgroups could not be made, or this process not put into them.
    #[error(transparent)]
    ContainerCgroup(#[from] ContainerCgroupError),
    /// The container could not be created or started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A signal came before the container was ready.
    #[error("interrupted by signal {0} while the sandbox was starting")]
    Interrupted(i32),
    /// The program that waited for the container has gone.
    #[error("given up while the sandbox was starting")]
    Abandoned,
}

fn process_failed(action: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Process { action, source }
}

/// The container that a monitor runs, and how.
pub struct Order<'a> {
    /// The container, whose state is `Creating`.
    pub container: &'a Container,
    /// Its bundle, checked.
    pub bundle: &'a Bundle,
    /// rvm's configuration.
    pub config: &'a Config,
    /// Who makes the container's cgroups.
    pub driver: Driver,
    /// The program that asked for the container.
    pub caller: Caller<'a>,
    /// This process's first thread. The monitor runs on another.
    pub anchor: &'a PidAnchor,
    /// The checkpoint that the container goes on from, at once.
    pub image: Option<Arc<Image>>,
}

/// Runs a container to its end; returns its exit code.
pub async fn run(mut order: Order<'_>, timings: &mut Timings) -> Result<u8, MonitorError> {
    let signals = Signals::block().map_err(process_failed("block signals"))?;
    let groups = Groups::of(&order)?;
    claim(order.container)?;
    let result = live(&mut order, &groups, &signals, timings).await;
    let torn_down = tear_down(order.container, result.as_ref().ok()).await;
    if let Groups::EnterAndLeave(home) = groups {
        home.rejoin()?;
    }
    timings.lap("tear down");
    let end = result?;
    torn_down?;
    Ok(end.status)
}

/// How a monitor is in its container's control groups.
enum Groups {
    /// As long as it lives. Another process removes them.
    Enter,
    /// Until the container has ended, since it removes them itself. A group of systemd's needs a
    /// process to come into being.
    EnterAndLeave(Cgroup),
    /// Not at all, for the same reason: each move costs the kernel a grace period of RCU. The
    /// machine starts in them.
    StayOut,
}

impl Groups {
    fn of(order: &Order<'_>) -> Result<Self, CgroupError> {
        Ok(match (&order.caller.mode, order.driver) {
            (Mode::Detached(_), _) => Self::Enter,
            (Mode::Foreground, Driver::Systemd) => Self::EnterAndLeave(Cgroup::own()?),
            (Mode::Foreground, Driver::Cgroupfs) => Self::StayOut,
        })
    }
}

/// How a container ended.
struct End {
    /// Its exit code.
    status: u8,
    /// Whether the guest's kernel has killed a process of it for want of memory.
    oom_killed: bool,
}

/// Makes this process the container's monitor.
fn claim(container: &Container) -> Result<(), MonitorError> {
    fault_point!("monitor.claim").map_err(process_failed("claim the container"))?;
    let own = ProcessId::own().map_err(process_failed("find out the own pid"))?;
    Ok(container.lock()?.claim(own)?)
}

/// The container's life, from its cgroups to its end.
async fn live(
    order: &mut Order<'_>,
    groups: &Groups,
    signals: &Signals,
    timings: &mut Timings,
) -> Result<End, MonitorError> {
    let plan = tokio::select! {
        planned = plan_machine(
            order.container.id(),
            order.bundle,
            order.image.as_ref(),
            order.config,
            timings,
        ) => planned?,
        signal = interrupted(signals) => return Err(MonitorError::Interrupted(signal)),
        () = order.caller.gone() => return Err(MonitorError::Abandoned),
    };
    fault_point!("monitor.planned").map_err(process_failed("plan the machine"))?;
    let is_in_groups = !matches!(groups, Groups::StayOut);
    if is_in_groups {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        cgroup::enter(order.container, order.bundle, order.driver, &[own])?;
    }
    let (host, terminal) = order.caller.take_streams(order.bundle.has_terminal())?;
    fault_point!("monitor.streams").map_err(process_failed("take the streams"))?;
    let outside = Namespace::own().map_err(process_failed("find the host's network namespace"))?;
    let (namespace, placement) = take_network(order.bundle, plan).map_err(StartError::from)?;
    let entered = fault_point!("monitor.enter").and_then(|()| namespace.enter());
    let entered = entered.and_then(|()| order.anchor.enter(&namespace));
    entered.map_err(process_failed("enter the container's network namespace"))?;
    let (place, mut relay) = tokio::select! {
        started = start(order, is_in_groups, &outside, placement, host, timings) => started?,
        signal = interrupted(signals) => return Err(MonitorError::Interrupted(signal)),
        () = order.caller.gone() => return Err(MonitorError::Abandoned),
    };
    let init = GuestProcess {
        agent: place.guest().agent().clone(),
        id: order.container.init(),
        terminal,
    };
    init.fit_terminal().await;
    fault_point!("monitor.started").map_err(process_failed("tell of the start"))?;
    order.caller.send_pidfd()?;
    order.caller.report_ready()?;
    fault_point!("monitor.ready").map_err(process_failed("tell of the start"))?;
    let end = supervise(&init, &place, signals, &mut relay).await;
    timings.lap("run the container");
    fault_point!("monitor.ended").map_err(process_failed("end the container"))?;
    tokio::join!(settle(relay, signals), place.guest().write_back(end.status));
    Ok(end)
}

/// Everything up to a container that runs, or that another process starts.
async fn start(
    order: &Order<'_>,
    is_in_groups: bool,
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
        is_in_groups,
        image: order.image.as_deref(),
    };
    let (place, relay) = start.create(placement, host, timings).await?;
    if matches!(order.caller.mode, Mode::Foreground) || order.image.is_some() {
        start.start(place.guest(), timings).await?;
    }
    Ok((place, relay))
}

/// Passes signals on until the container's init process has ended. The owner of the sandbox serves
/// it meanwhile.
async fn supervise(
    init: &GuestProcess,
    place: &Place,
    signals: &Signals,
    relay: &mut Relay,
) -> End {
    let guest = place.guest();
    let server = place.sandbox().map(|sandbox| Server::new(sandbox));
    let mut service = std::pin::pin!(serve(server.as_ref()));
    let end = tokio::select! {
        biased;
        end = init.pass_signals_until(guest.wait(&init.id), signals, relay) => end,
        never = &mut service => match never {},
        never = settle_down() => match never {},
    };
    if let (Some(server), Ok(_) | Err(MachineEnd::Saved)) = (&server, &end) {
        // The process that asked for the start, or for the checkpoint, may not have its answer yet.
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, server.all_answered());
        tokio::select! { _ = answered => {}, never = &mut service => match never {} }
    }
    match end {
        Ok(exit) => {
            return End {
                status: exit.status,
                oom_killed: exit.oom_killed,
            };
        }
        // Switching the machine off is one way for a container to end.
        Err(end @ (MachineEnd::PowerOff | MachineEnd::Saved)) => tracing::info!("{end}"),
        Err(_) if guest.dir().is_saving() => tracing::info!("{}", MachineEnd::Saved),
        Err(end) => tracing::error!("{}", guest.explain_end(&end)),
    }
    End {
        status: EXIT_MACHINE_GONE,
        oom_killed: false,
    }
}

/// Gives back what only the start has needed, once the container has run for a while.
async fn settle_down() -> Infallible {
    tokio::time::sleep(SETTLE_TIME).await;
    if let Err(error) = process_memory::give_back() {
        tracing::debug!("cannot give back the memory of the start: {error}");
    }
    std::future::pending().await
}

async fn serve(server: Option<&Server<'_>>) -> Infallible {
    if let Some(server) = server {
        let error = server.serve().await;
        tracing::error!("{}", chain(&error));
    }
    std::future::pending().await
}

/// Takes away everything but the state, which says how the container ended.
async fn tear_down(container: &Container, end: Option<&End>) -> Result<(), MonitorError> {
    let state = container.state()?;
    fault_point!("teardown.begun").map_err(process_failed("tear the container down"))?;
    let left = leave(container, &state, end.is_none()).await;
    if let Err(error) = left.and_then(|()| Ok(share::remove(container.path())?)) {
        tracing::warn!("{error}");
    }
    // Before this process ends, which engines take for the container's end.
    if end.is_some_and(|end| end.oom_killed)
        && let Some(Err(error)) = state.cgroup.map(|cgroup| cgroup.count_oom_kill())
    {
        tracing::warn!("{}", chain(&error));
    }
    fault_point!("teardown.unshared").map_err(process_failed("tear the container down"))?;
    let stopped = |state: &mut State| state.exit_status = end.map(|end| end.status);
    let locked = container.lock();
    match locked.and_then(|locked| locked.step(Status::Stopped, stopped)) {
        // It is being deleted.
        Err(StateError::NotFound(_)) => Ok(()),
        Err(StateError::Step(step)) if step.from == Status::Stopped => Ok(()),
        written => Ok(written.map(drop)?),
    }
}
