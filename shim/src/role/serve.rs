//! The daemon: serves the socket that it inherits as standard input, until containerd shuts it
//! down.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use rustix::fs::FileType;
use rvm_sys::readiness::Readable;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, Service};

use crate::events::{Publisher, TTRPC_ADDRESS};
use crate::invocation::flags::Flags;
use crate::invocation::log;
use crate::pod::Pod;
use crate::service::sandbox::SandboxService;
use crate::service::task::TaskService;

/// The name of the task service in containerd 1.6 and 1.7. Its messages are those of version 3.
const TASK_V2: &str = "containerd.task.v2.Task";

/// The name of the task service in containerd 2.
const TASK_V3: &str = "containerd.task.v3.Task";

/// How long the last events wait for containerd, which may be restarting.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for the answer to the shutdown request to leave before the process exits.
const LAST_ANSWER_DELAY: Duration = Duration::from_millis(50);

/// Serves until containerd asks for the shutdown.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    log::start(flags)?;
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("cannot start the event loop")
        .and_then(|runtime| runtime.block_on(serve(flags)));
    if let Err(error) = &served {
        tracing::error!("{error:#}");
    }
    served
}

async fn serve(flags: &Flags) -> anyhow::Result<()> {
    let (listener, socket) =
        inherited_listener().context("standard input is no listening socket")?;
    let address = std::env::var(TTRPC_ADDRESS).with_context(|| format!("no {TTRPC_ADDRESS}"))?;
    let events = Publisher::new(flags.namespace.clone(), address);
    let pod = Arc::new(Pod::new(flags, events));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task_services(&pod))
        .register_service(create_sandbox(Arc::new(SandboxService::new(Arc::clone(
            &pod,
        )))));
    server.start().await.context("cannot serve the socket")?;
    tracing::info!("ready, pid {}", std::process::id());

    tokio::select! {
        () = pod.shutdown.notified() => {}
        () = abandoned() => tracing::warn!("containerd has not been told of this shim"),
    }
    // New connections fail from here on.
    let _ = fs::remove_file(socket);
    tokio::time::sleep(LAST_ANSWER_DELAY).await;
    pod.end_machine().await;
    pod.drain_events(EVENTS_TIMEOUT).await;
    tracing::info!("done");
    Ok(())
}

/// Completes if the process that has started this one ends before it has answered containerd, see
/// [`super::start`].
async fn abandoned() {
    let stdout = io::stdout();
    let is_pipe = rustix::fs::fstat(&stdout)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if is_pipe && let Ok(readable) = Readable::new(stdout.as_fd()) {
        let read = readable.read(|fd| Ok(rustix::io::read(fd, &mut [0; 1])?));
        if let Ok(0) = read.await {
            return;
        }
    }
    std::future::pending().await
}

/// The socket, and its path.
fn inherited_listener() -> io::Result<(Listener, PathBuf)> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(socket);
    let address = listener.local_addr()?;
    let path = address
        .as_pathname()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok((Listener::from(listener), path.to_owned()))
}

/// The task service under both of its names.
fn task_services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let service = || create_task(Arc::new(TaskService(Arc::clone(pod))));
    let renamed = service().remove(TASK_V3);
    let mut services = service();
    services.extend(renamed.map(|service| (TASK_V2.to_owned(), service)));
    services
}
