//! rvm's agent: the init of the guest, and the runtime of the containers in it.
//!
//! The binary is [`run`] and nothing else. This is a library so that tests can drive the same
//! service as an ordinary process ([`serve`]).

pub mod boot;
pub mod container;
pub mod error;
pub mod events;
mod host_dirs;
mod host_only;
pub mod init;
pub mod logging;
pub mod names;
pub mod network;
pub mod ports;
pub mod power;
pub mod process;
pub mod reaper;
pub mod sandbox;
pub mod server;
pub mod size;
pub mod streams;
pub mod sys;
pub mod volumes;

use std::os::fd::OwnedFd;

use rustix::time::{ClockId, clock_gettime};
use rvm_protocol::{AGENT_PORT, READY_PORT, STREAM_PORT};

use sandbox::Sandbox;
use server::{AfterShutdown, Service, Timings};
use sys::{Doing as _, OsError, signal, vsock};

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A system call failed.
    #[error(transparent)]
    Os(#[from] OsError),
    /// The service cannot listen.
    #[error("serve the agent's protocol: {0}")]
    Service(#[from] ttrpc::Error),
}

/// Where the agent is reached.
pub struct Listeners {
    /// For the service.
    pub service: ttrpc::r#async::transport::Listener,
    /// A listening, non-blocking socket for standard streams.
    pub streams: OwnedFd,
}

/// The process's whole life, as a container's process or as the guest's init. Never returns.
pub fn run() -> ! {
    if std::env::args().nth(1).as_deref() == Some(init::ARGUMENT) {
        init::run();
    }
    let started_ns = boot_time_ns();
    power::reset_on_panic();
    if let Err(error) = boot::run() {
        power::reset(&error.to_string());
    }
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => match runtime.block_on(serve_guest(started_ns)) {
            Ok(()) => power::reset("the agent stopped serving"),
            Err(error) => power::reset(&error.to_string()),
        },
        Err(error) => power::reset(&format!("start the runtime: {error}")),
    }
}

async fn serve_guest(started_ns: u64) -> Result<(), ServeError> {
    const BACKLOG: i32 = 128;
    let streams = vsock::listen_on(STREAM_PORT, BACKLOG)
        .doing(|| format!("listen on vsock port {STREAM_PORT}"))?;
    let service =
        host_only::listen(AGENT_PORT).doing(|| format!("listen on vsock port {AGENT_PORT}"))?;
    let listeners = Listeners { service, streams };
    serve(listeners, started_ns, AfterShutdown::PowerOff, say_ready).await
}

/// The host's device refuses the connection, by which it knows that the guest listens. Without a
/// device that cares, nobody waits for it either.
fn say_ready() {
    match vsock::connect(vsock::HOST_CID, READY_PORT) {
        Ok(_) => log::debug!("somebody listens on the ready port"),
        Err(errno) => log::debug!("the ready port: {errno}"),
    }
}

/// Serves the agent's protocol for ever. `ready` is called once both listeners take connections.
pub async fn serve(
    listeners: Listeners,
    started_ns: u64,
    after_shutdown: AfterShutdown,
    ready: fn(),
) -> Result<(), ServeError> {
    let sandbox = Sandbox::new()?;
    let signals = signal::child_exits().doing(|| "receive SIGCHLD")?;
    let server = ttrpc::r#async::Server::new().add_listener(listeners.service);
    let timings = Timings {
        started_ns,
        ready_ns: boot_time_ns(),
    };
    let service = Service::new(sandbox.clone(), timings, after_shutdown);
    let mut server = server.register_service(rvm_protocol::agent::create_agent(service));
    server.start().await?;
    let streams = tokio::spawn(sandbox.streams.clone().serve(listeners.streams));
    let reaper = tokio::spawn(sandbox.reaper.clone().run(signals));
    ready();
    let ended = tokio::select! {
        streams = streams => streams.map(|result| result.doing(|| "accept streams")),
        reaper = reaper => reaper,
    };
    // Neither ends unless it fails.
    ended.unwrap_or(Ok(())).map_err(Into::into)
}

fn boot_time_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}
