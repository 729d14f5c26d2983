//! The containers of a pod by id, and the events about them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rvm_protocol::ContainerId;

use super::container::{Container, Kind};
use super::error::Refusal;
use crate::events::{Event, Publisher};

enum Slot {
    /// The id is taken by a container that is being created.
    Creating,
    Created(Arc<Container>),
}

/// The containers of a pod.
pub struct Registry {
    slots: Mutex<BTreeMap<ContainerId, Slot>>,
    pub events: Publisher,
}

impl Registry {
    pub fn new(events: Publisher) -> Self {
        Self {
            slots: Mutex::default(),
            events,
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves an id until [`Self::insert`] or [`Self::remove`].
    pub fn reserve(&self, id: &ContainerId) -> Result<(), Refusal> {
        match self.slots().entry(id.clone()) {
            Entry::Occupied(_) => Err(Refusal::ContainerExists(id.clone())),
            Entry::Vacant(slot) => {
                slot.insert(Slot::Creating);
                Ok(())
            }
        }
    }

    pub fn insert(&self, container: Arc<Container>) {
        let id = container.id().clone();
        self.slots().insert(id, Slot::Created(container));
    }

    pub fn remove(&self, id: &ContainerId) {
        self.slots().remove(id);
    }

    pub fn find(&self, id: &ContainerId) -> Result<Arc<Container>, Refusal> {
        match self.slots().get(id) {
            Some(Slot::Created(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating) | None => Err(Refusal::NoContainer(id.clone())),
        }
    }

    /// Whether no container exists or is being created.
    pub fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    /// Whether a container's init process has not ended.
    pub fn any_alive(&self) -> bool {
        self.slots().values().any(|slot| match slot {
            Slot::Created(container) => container.init.exit().is_none(),
            Slot::Creating => false,
        })
    }

    /// Publishes an event about a container, if it is a task.
    pub fn publish<E: Event>(&self, container: &Container, event: &E) {
        if container.kind == Kind::Task {
            self.events.publish(event);
        }
    }
}
