//! The containers that share a sandbox.

use rvm_protocol::ContainerId;

use super::{State, StateError, Status, Store};
use crate::sizing::pod_limits::Limits;
use crate::spec::pod::Peer;

impl Store {
    /// The containers that run in the sandbox of the container `id`, itself included.
    pub fn peers(&self, id: &ContainerId) -> Result<Vec<Peer>, StateError> {
        let mut peers = Vec::new();
        for other in self.ids()? {
            match self
                .open(other.as_str())
                .and_then(|container| container.state())
            {
                Ok(state) if other == *id || state.sandbox.as_ref() == Some(id) => {
                    peers.extend(peer(state));
                }
                Ok(_) => {}
                // Deleted meanwhile, or damaged. The verbs about that container report it.
                Err(error) => tracing::debug!("container {other}: {error}"),
            }
        }
        Ok(peers)
    }

    /// The states of the containers that have joined the sandbox of the container `id`.
    pub fn members(&self, id: &ContainerId) -> Result<Vec<State>, StateError> {
        let mut members = Vec::new();
        for other in self.ids()? {
            match self
                .open(other.as_str())
                .and_then(|container| container.state())
            {
                Ok(state) if state.sandbox.as_ref() == Some(id) => members.push(state),
                Ok(_) => {}
                Err(error) => tracing::debug!("container {other}: {error}"),
            }
        }
        Ok(members)
    }

    /// The limits of the containers that have joined the sandbox of the container `id` and run,
    /// without those of `one`.
    pub fn limits_of_others(
        &self,
        id: &ContainerId,
        one: &ContainerId,
    ) -> Result<Vec<Limits>, StateError> {
        let members = self.members(id)?.into_iter();
        let others = members.filter(|state| state.id != *one && state.status() != Status::Stopped);
        Ok(others.map(|state| state.limits()).collect())
    }
}

/// A running container, as one that joins its sandbox must know it.
fn peer(state: State) -> Option<Peer> {
    Some(Peer {
        host_pid: state.pid(),
        guest_pid: state.guest_pid?,
        namespaces: state.namespaces,
    })
}
