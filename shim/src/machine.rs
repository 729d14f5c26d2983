//! What a pod's machine needs while it runs: somebody who answers for it, and who tells of what happens
//! in it and to it.

use std::sync::Arc;

use containerd_shim_protos::events::task::TaskOOM;
use rvm_sandbox::control::Server;
use rvm_sandbox::engine::MachineEnd;
use rvm_sandbox::sandbox::Sandbox;
use rvm_sandbox::spec::pod::Role;

use crate::error::chain;
use crate::pod::Pod;

/// Attends to a machine until it ends. Its first container has this part in a pod.
pub fn attend(pod: &Arc<Pod>, sandbox: &Arc<Sandbox>, role: &Role) {
    tokio::spawn(watch_memory(Arc::clone(pod), Arc::clone(sandbox)));
    tokio::spawn(watch_end(Arc::clone(pod), Arc::clone(sandbox)));
    tokio::spawn(serve(Arc::clone(sandbox)));
    if *role == Role::Sandbox {
        tokio::spawn(serve_ports(Arc::clone(sandbox)));
    }
}

/// Tells of processes that the guest's kernel kills for want of memory.
async fn watch_memory(pod: Arc<Pod>, sandbox: Arc<Sandbox>) {
    let mut events = match sandbox.guest().agent().events().await {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!("no end for want of memory will be told: {error}");
            return;
        }
    };
    while let Ok(Some(event)) = events.next().await {
        if event.has_oom()
            && let Ok(container) = pod.container(&event.oom().container_id)
        {
            let event = TaskOOM {
                container_id: container.id().to_owned(),
                ..Default::default()
            };
            pod.tell(&container, &event);
        }
    }
}

/// Says why a machine has ended that was to go on.
async fn watch_end(pod: Arc<Pod>, sandbox: Arc<Sandbox>) {
    let end = sandbox.guest().ended().await;
    match end {
        _ if !pod.has_sandbox() => {}
        // Switching it off is one way for a container to end.
        MachineEnd::PowerOff => tracing::info!("{end}"),
        _ => tracing::error!("{}", sandbox.guest().explain_end(&end)),
    }
}

/// Does for the sandbox what its owner has to: answers what others ask of it, and follows its network.
/// Starting a container waits for that.
async fn serve(sandbox: Arc<Sandbox>) {
    let error = Server::new(&sandbox).serve().await;
    tracing::debug!("the sandbox is served no more: {}", chain(&error));
}

/// Lets whoever forwards a port of the pod's find the programs in the guest.
async fn serve_ports(sandbox: Arc<Sandbox>) {
    if let Err(error) = sandbox.forward_ports().await {
        tracing::warn!("ports of the pod's cannot be forwarded: {}", chain(&error));
    }
}
