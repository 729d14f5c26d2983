//! A pod: one machine and the containers in it.
//!
//! ```text
//!   create ──> created ──> started ──> ended ──> deleted
//!                 └───────────────────────^
//! ```
//!
//! containerd relies on the order of events: of a container's processes the init process's exit is
//! published last, and the exit is the last event of each process.

mod exit;
pub mod error;
pub mod process;
mod execs;
pub mod container;
mod registry;
mod machine;
mod stale;
mod create;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskDelete, TaskExecStarted, TaskExit, TaskStart,
};
use rvm_protocol::{ContainerId, ExecId};
use rvm_sandbox::guest::stdio::Relay;
use rvm_sandbox::monitor::EXIT_MACHINE_GONE;
use rvm_sandbox::sandbox::disks;
use rvm_sandbox::state::Status;
use tokio::sync::Notify;

use crate::events::{Event, Publisher};
use crate::invocation::flags::Flags;
use crate::options::Checkpoint;
use container::Container;
use error::{PodError, Refusal};
use exit::Exit;
use machine::Machine;
use process::Process;
use registry::Registry;

/// How long an exit waits until the process's output has been read. A reader that is slower gets
/// the rest afterwards.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A machine and its containers.
pub struct Pod {
    namespace: String,
    config: Option<PathBuf>,
    registry: Arc<Registry>,
    machine: Arc<Machine>,
    /// Files for all containers, where containerd leaves them to the shim.
    shared_files: OnceLock<PathBuf>,
    /// Notified when containerd has asked the daemon to shut down.
    pub shutdown: Notify,
}

impl Pod {
    pub fn new(flags: &Flags, events: Publisher) -> Self {
        Self {
            namespace: flags.namespace.clone(),
            config: flags.config.clone(),
            registry: Arc::new(Registry::new(events)),
            machine: Arc::default(),
            shared_files: OnceLock::new(),
            shutdown: Notify::new(),
        }
    }

    /// Adds the files in `dir` to the containers that are created from now on; see
    /// [`crate::sandbox_bundle::files`].
    pub fn share_files(&self, dir: PathBuf) {
        // A pod has one sandbox, which is made once.
        let _ = self.shared_files.set(dir);
    }

    pub fn container(&self, id: &ContainerId) -> Result<Arc<Container>, Refusal> {
        self.registry.find(id)
    }

    /// Whether no container exists or is being created.
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// Publishes an event about a container, if it is a task.
    pub fn publish<E: Event>(&self, container: &Container, event: &E) {
        self.registry.publish(container, event);
    }

    /// Waits until containerd has accepted every event, but no longer than `timeout`.
    pub async fn drain_events(&self, timeout: Duration) {
        self.registry.events.drain(timeout).await;
    }

    /// Starts a container's init process.
    pub async fn start(&self, container: &Container) -> Result<(), PodError> {
        let _publishing = container.init.publishing.lock().await;
        container.start().await?;
        let event = TaskStart {
            container_id: container.id().to_string(),
            pid: container.init.pid(),
            ..Default::default()
        };
        self.publish(container, &event);
        Ok(())
    }

    /// Writes a container's machine to a checkpoint. The container's exit follows, if it is to end
    /// with it.
    pub async fn checkpoint(
        &self,
        container: &Container,
        wanted: &Checkpoint,
    ) -> Result<(), PodError> {
        let _publishing = container.init.publishing.lock().await;
        container.checkpoint(wanted).await?;
        let event = TaskCheckpointed {
            container_id: container.id().to_string(),
            checkpoint: wanted.dir.to_string_lossy().into_owned(),
            ..Default::default()
        };
        self.publish(container, &event);
        Ok(())
    }

    /// Starts an added process.
    pub async fn start_exec(
        &self,
        container: &Arc<Container>,
        id: &ExecId,
        process: &Arc<Process>,
    ) -> Result<(), PodError> {
        let _publishing = process.publishing.lock().await;
        let relay = container.start_exec(id, process, &self.namespace).await?;
        let event = TaskExecStarted {
            container_id: container.id().to_string(),
            exec_id: id.to_string(),
            pid: process.pid(),
            ..Default::default()
        };
        self.publish(container, &event);
        self.watch_exit(container, Arc::clone(process), relay);
        Ok(())
    }

    /// Waits for a process's exit in a task of its own, then records and publishes it. The end of a
    /// container that has the machine to itself ends the machine.
    fn watch_exit(&self, container: &Arc<Container>, process: Arc<Process>, relay: Relay) {
        let container = Arc::clone(container);
        let (registry, machine) = (Arc::clone(&self.registry), Arc::clone(&self.machine));
        tokio::spawn(async move {
            let waited = container.guest.wait(&process.id).await;
            let exit = waited.map_or_else(|_| Exit::with_machine(), |exit| Exit::now(exit.status));
            drain(relay).await;
            let _settling = match process.is_init() {
                true => {
                    container.execs.wait().await;
                    let settling = container.settling.lock().await;
                    container.write_back_unless_killed(exit).await;
                    Some(settling)
                }
                false => None,
            };
            let _publishing = process.publishing.lock().await;
            if process.is_init() {
                container.record_exit(exit);
            }
            process.set_exit(exit);
            publish_exit(&registry, &container, &process, exit);
            if process.is_init() {
                settle(&registry, &machine, &container).await;
            }
        });
    }

    /// Deletes a container that has ended or was never started; returns its exit.
    pub async fn delete(&self, container: &Container) -> Result<Exit, PodError> {
        let exit = match container.init.exit() {
            Some(exit) => exit,
            None => match container.record.state()?.status {
                Status::Created => Exit::with_machine(),
                status => {
                    let id = container.id().clone();
                    return Err(Refusal::NotStopped { id, status }.into());
                }
            },
        };
        drop(container.settling.lock().await);
        if container.owns_sandbox {
            self.end_machine().await;
        }
        container.remove().await?;
        container.init.end_logger().await;
        if let Some(sandbox) = self.machine.get() {
            disks::release(container.id(), &container.guest, Some(&sandbox)).await;
        }
        self.registry.remove(container.id());
        let event = TaskDelete {
            container_id: container.id().to_string(),
            pid: container.init.pid(),
            exit_status: exit.status.into(),
            exited_at: Some(exit.timestamp()).into(),
            ..Default::default()
        };
        self.publish(container, &event);
        Ok(exit)
    }

    /// Ends the machine, if there is one.
    pub async fn end_machine(&self) {
        self.machine.end(self.registry.any_alive()).await;
    }
}

/// What follows the exit of a container: its last files come to the host if they have not yet, and
/// a machine that was made for it ends.
async fn settle(registry: &Registry, machine: &Machine, container: &Container) {
    if *container.is_killed.borrow() {
        container.guest.write_back(EXIT_MACHINE_GONE).await;
    }
    if container.owns_sandbox {
        machine.end(registry.any_alive()).await;
    }
}

fn publish_exit(registry: &Registry, container: &Container, process: &Process, exit: Exit) {
    // In events an init process has its container's id.
    let id = match &process.id.exec {
        None => container.id().to_string(),
        Some(id) => id.to_string(),
    };
    let event = TaskExit {
        container_id: container.id().to_string(),
        id,
        pid: process.pid(),
        exit_status: exit.status.into(),
        exited_at: Some(exit.timestamp()).into(),
        ..Default::default()
    };
    registry.publish(container, &event);
}

/// Waits until a process's output has been passed on, but no longer than [`DRAIN_TIMEOUT`]; the
/// rest is passed on in the background.
async fn drain(relay: Relay) {
    let drained = tokio::spawn(relay.drained());
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::debug!("a process has ended before its output");
    }
}
