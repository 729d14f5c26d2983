//! rvm's agent: the init of the guest, and the runtime of the containers in it.
//!
//! The binary is [`run`] and nothing else; as a library the crate has unit tests.

// The rooms, bottom first: a room uses those above it in this list, never one below. A test of the
// repository holds that.
mod sys;
mod logging;
mod power;
mod cgroup;
mod init;
mod boot;
mod streams;
mod process;
mod events;
mod volumes;
mod slots;
mod disks;
mod network;
mod names;
mod ports;
mod size;
mod clock;
mod entropy;
mod meminfo;
mod container;
mod sandbox;
mod server;

use rustix::time::{ClockId, clock_gettime};
use rvm_protocol::{AGENT_PORT, READY_PORT, STREAM_PORT};
use rvm_sys::error_chain::chain;

use sandbox::Sandbox;
use server::{Service, Timings};
use sys::{Doing as _, OsError, signal, vsock};

/// What a fuzzer calls, with bytes that the host or an image could hold: one function for each file
/// in fuzz/fuzz_targets. None may panic.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    pub use crate::container::hostile::configuration as guest_config;
    pub use crate::container::seccomp_hostile::profiles as seccomp;
    pub use crate::server::hostile::requests as agent_requests;

    #[cfg(test)]
    mod tests {
        #[test]
        fn every_target_takes_its_corpus() {
            rvm_fuzz_input::replay(
                "rvm_agent",
                &[
                    ("agent_requests", super::agent_requests),
                    ("guest_config", super::guest_config),
                    ("seccomp", super::seccomp),
                ],
            );
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Os(#[from] OsError),
    #[error("serve the agent's protocol")]
    Service(#[from] ttrpc::Error),
}

/// The process's whole life, as a container's process or as the guest's init. Never returns.
pub fn run() -> ! {
    if std::env::args().nth(1).as_deref() == Some(init::ARGUMENT) {
        init::run();
    }
    let started_ns = boot_time_ns();
    power::reset_on_panic();
    if let Err(error) = boot::run() {
        power::reset(&chain(&error));
    }
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => match runtime.block_on(serve(started_ns)) {
            Ok(()) => power::reset("the agent stopped serving"),
            Err(error) => power::reset(&chain(&error)),
        },
        Err(error) => power::reset(&format!("start the runtime: {error}")),
    }
}

/// Serves the agent's protocol until the machine ends.
async fn serve(started_ns: u64) -> Result<(), ServeError> {
    const BACKLOG: i32 = 128;
    let streams = vsock::listen_on(STREAM_PORT, BACKLOG)
        .doing(|| format!("listen on vsock port {STREAM_PORT}"))?;
    let listener =
        server::listen(AGENT_PORT).doing(|| format!("listen on vsock port {AGENT_PORT}"))?;
    let sandbox = Sandbox::new()?;
    let runtime = sandbox.runtime.clone();
    let signals = signal::child_exits().doing(|| "receive SIGCHLD")?;
    let timings = Timings {
        started_ns,
        ready_ns: boot_time_ns(),
    };
    let service = rvm_protocol::agent::create_agent(Service::new(sandbox, timings));
    let server = ttrpc::r#async::Server::new().add_listener(listener);
    let mut server = server.register_service(service);
    server.start().await?;
    let streams = tokio::spawn(runtime.streams.serve(streams));
    let reaper = tokio::spawn(runtime.reaper.run(signals));
    report_ready();
    let ended = tokio::select! {
        streams = streams => streams.map(|result| result.doing(|| "accept streams")),
        reaper = reaper => reaper,
    };
    // Neither ends unless it fails.
    ended.unwrap_or(Ok(())).map_err(Into::into)
}

/// Tells the host that the guest listens. The host's device refuses the connection; a host without
/// such a device does not wait for it.
fn report_ready() {
    match vsock::connect(vsock::HOST_CID, READY_PORT) {
        Ok(_) => log::debug!("a program on the host listens on the ready port"),
        Err(errno) => log::debug!("the ready port: {errno}"),
    }
}

fn boot_time_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}
