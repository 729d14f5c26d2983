//! Removes stale containers: those whose shim was killed together with containerd, which would have
//! cleaned up after it.
//!
//! containerd asks for the removal of every container that has a bundle, however late. If the
//! bundle is gone too, or another container has got the id, containerd asks no more.

use rvm_protocol::ContainerId;
use rvm_sandbox::container::lifecycle::{self, LifecycleError};
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::state::{Container, State, StateError, Store};
use rvm_sys::error_chain::chain;

use crate::bundle::remove_dead_socket;

/// Makes the directory of a new container. A stale container with the same id is removed first:
/// containerd reuses an id only if it knows of no container that has it.
pub async fn prepare(
    store: &Store,
    id: &ContainerId,
    bundle: &Bundle,
) -> Result<Container, LifecycleError> {
    match lifecycle::prepare(store, id.as_str(), bundle) {
        Err(LifecycleError::State(StateError::Exists(_))) => {
            remove_if(store, id.as_str(), |_| true).await?;
            lifecycle::prepare(store, id.as_str(), bundle)
        }
        other => other,
    }
}

/// Removes, in the background, the containers of a namespace whose shims and bundles are gone.
pub fn sweep(store: Store) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let ids = match store.ids() {
            Ok(ids) => ids,
            Err(error) => return tracing::warn!("{}", chain(&error)),
        };
        for id in ids {
            let removed = remove_if(&store, id.as_str(), |state| !state.bundle.exists());
            if let Err(error) = runtime.block_on(removed) {
                tracing::warn!("cannot remove the stale container {id}: {}", chain(&error));
            }
        }
    });
}

/// Removes a container whose shim is dead, if its state meets a condition.
async fn remove_if(
    store: &Store,
    id: &str,
    condition: impl Fn(&State) -> bool,
) -> Result<(), LifecycleError> {
    let container = match store.open(id) {
        Err(StateError::NotFound(_)) => return Ok(()),
        opened => opened?,
    };
    match container.state() {
        Ok(state) if state.is_orphan() && condition(&state) => {
            tracing::info!("container {id} has outlived its shim and is removed");
            remove_dead_socket(container.path());
            lifecycle::delete(&container, true).await
        }
        // Another shim serves it, or its state is damaged: the host's administrator should see
        // that.
        Ok(_) | Err(_) => Ok(()),
    }
}
