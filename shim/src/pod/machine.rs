//! The pod's machine while it runs: this process owns it and does the owner's work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use rvm_protocol::ContainerId;
use rvm_sandbox::control::Server;
use rvm_sandbox::engine::MachineEnd;
use rvm_sandbox::sandbox::Sandbox;
use rvm_sandbox::spec::pod::Role;
use rvm_sys::error_chain::chain;

use super::registry::Registry;

/// How long a machine may take to end its containers and write back their files.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// The slot of the pod's machine. It is empty before the pod's first container is created, and
/// again as soon as this process decides to end the machine.
#[derive(Default)]
pub struct Machine(Mutex<Option<Arc<Sandbox>>>);

impl Machine {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine, unless this process is about to end it.
    pub fn get(&self) -> Option<Arc<Sandbox>> {
        self.slot().clone()
    }

    /// Takes over a machine that has started, and serves it until it ends.
    pub fn own(self: &Arc<Self>, sandbox: &Arc<Sandbox>, role: &Role, registry: &Arc<Registry>) {
        *self.slot() = Some(Arc::clone(sandbox));
        tokio::spawn(publish_oom_kills(Arc::clone(registry), Arc::clone(sandbox)));
        tokio::spawn(log_end(Arc::clone(self), Arc::clone(sandbox)));
        tokio::spawn(serve(Arc::clone(sandbox)));
        if *role == Role::Sandbox {
            tokio::spawn(forward_ports(Arc::clone(sandbox)));
        }
    }

    /// Ends the machine, if there is one. If containers are alive, the guest first gets the time to
    /// end them.
    pub async fn end(&self, containers_are_alive: bool) {
        let Some(sandbox) = self.slot().take() else {
            return;
        };
        if containers_are_alive {
            let shutdown = sandbox.guest().agent().shut_down();
            let shutdown = tokio::time::timeout(SHUTDOWN_TIMEOUT, shutdown);
            tokio::select! {
                biased;
                _ = sandbox.guest().ended() => {}
                done = shutdown => if !matches!(done, Ok(Ok(()))) {
                    tracing::warn!("the machine did not shut down and is killed");
                },
            }
        }
        if let Err(error) = sandbox.end().await {
            tracing::warn!("cannot kill the machine: {error}");
        }
    }
}

/// Publishes the OOM kills of the guest's kernel.
async fn publish_oom_kills(registry: Arc<Registry>, sandbox: Arc<Sandbox>) {
    let mut events = match sandbox.guest().agent().events().await {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!("OOM kills will not be published: {error}");
            return;
        }
    };
    while let Ok(Some(event)) = events.next().await {
        if event.has_oom()
            && let Ok(id) = ContainerId::new(event.oom().container_id.as_str())
            && let Ok(container) = registry.find(&id)
        {
            let event = TaskOOM {
                container_id: id.into(),
                ..Default::default()
            };
            registry.publish(&container, &event);
        }
    }
}

/// Logs why a machine has ended, unless this process has ended it.
async fn log_end(machine: Arc<Machine>, sandbox: Arc<Sandbox>) {
    let end = sandbox.guest().ended().await;
    match end {
        _ if machine.get().is_none() => {}
        // A container may end by switching the machine off.
        MachineEnd::PowerOff | MachineEnd::Saved => tracing::info!("{end}"),
        _ => tracing::error!("{}", sandbox.guest().explain_end(&end)),
    }
}

/// Answers requests of other processes to the sandbox's owner, of which the start of a container is
/// one, and follows the network.
async fn serve(sandbox: Arc<Sandbox>) {
    let error = Server::new(&sandbox).serve().await;
    tracing::debug!("the sandbox is no longer served: {}", chain(&error));
}

/// Forwards connections to the pod's ports on the host's loopback into the guest.
async fn forward_ports(sandbox: Arc<Sandbox>) {
    if let Err(error) = sandbox.forward_ports().await {
        tracing::warn!("cannot forward the pod's ports: {}", chain(&error));
    }
}
