//! The daemon: serves the socket that it got as its standard input, until containerd needs it no
//! more.

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
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, Service};

use crate::events::{Publisher, TTRPC_ADDRESS};
use crate::flags::Flags;
use crate::logging;
use crate::pod::Pod;
use crate::sandbox_api::SandboxApi;
use crate::task_api::TaskApi;

/// The task service as containerd 1.6 and 1.7 know it. Its messages are those of the younger.
const TASK_V2: &str = "containerd.task.v2.Task";

/// The task service as containerd 2 knows it.
const TASK_V3: &str = "containerd.task.v3.Task";

/// How long containerd may be away while the last events wait for it.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);

/// How long the last answer may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Serves until it is told to end.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    logging::start(flags)?;
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
        inherited_listener().context("standard input is no socket to serve")?;
    let address = std::env::var(TTRPC_ADDRESS).with_context(|| format!("no {TTRPC_ADDRESS}"))?;
    let events = Publisher::new(flags.namespace.clone(), address);
    let pod = Arc::new(Pod::new(flags, events));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task_services(&pod))
        .register_service(create_sandbox(Arc::new(SandboxApi::new(Arc::clone(&pod)))));
    server.start().await.context("cannot serve the socket")?;
    tracing::info!("ready, pid {}", std::process::id());

    pod.done.notified().await;
    // Whoever comes now finds nobody.
    let _ = fs::remove_file(socket);
    tokio::time::sleep(LAST_WORDS).await;
    pod.end_sandbox().await;
    pod.events.drained(EVENTS_LIMIT).await;
    tracing::info!("done");
    Ok(())
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

/// The task service by both of its names.
fn task_services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let service = || create_task(Arc::new(TaskApi(Arc::clone(pod))));
    let renamed = service().remove(TASK_V3);
    let mut services = service();
    services.extend(renamed.map(|service| (TASK_V2.to_owned(), service)));
    services
}
