//! What shims have left that were killed together with whoever would have cleaned up after them.
//!
//! containerd asks for the removal of whatever has a bundle, however late. Where the bundle is gone too,
//! or the id has been given to another container, nobody will ask any more.

use rvm_sandbox::container::lifecycle::{self, LifecycleError};
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::state::{Container, State, StateError, Store};

use crate::cleanup::remove_socket;
use crate::error::chain;

/// Makes the directory of a new container. Another by its id whose shim is dead is taken away first:
/// containerd would not have given the id away if it knew of it.
pub async fn prepare(
    store: &Store,
    id: &str,
    bundle: &Bundle,
) -> Result<Container, LifecycleError> {
    match lifecycle::prepare(store, id, bundle) {
        Err(LifecycleError::State(StateError::Exists(_))) => {
            remove_if(store, id, |_| true).await?;
            lifecycle::prepare(store, id, bundle)
        }
        other => other,
    }
}

/// Removes the containers of a namespace whose shims and bundles are gone, while others go on with their
/// work.
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
                tracing::warn!("the remains of container {id}: {}", chain(&error));
            }
        }
    });
}

/// Removes a container without a shim, if that is right by its state.
async fn remove_if(
    store: &Store,
    id: &str,
    is_right: impl Fn(&State) -> bool,
) -> Result<(), LifecycleError> {
    let container = match store.open(id) {
        Err(StateError::NotFound(_)) => return Ok(()),
        opened => opened?,
    };
    match container.state() {
        Ok(state) if state.is_orphan() && is_right(&state) => {
            tracing::info!("container {id} has outlived its shim and is removed");
            remove_socket(container.path());
            lifecycle::delete(&container, true).await
        }
        // Another shim's, or about to be, or damaged, and then whoever looks after the host should see it.
        Ok(_) | Err(_) => Ok(()),
    }
}
