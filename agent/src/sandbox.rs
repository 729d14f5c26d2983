//! The agent's view of its machine: the containers in it, and what serves all of them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rvm_protocol::{MAX_CONTAINER_ID, SHARED_CACHE_TIMEOUT};

use crate::boot;
use crate::container::{self, Container};
use crate::error::AgentError;
use crate::events::Events;
use crate::host_dirs::HostDirs;
use crate::names::Names;
use crate::network::Network;
use crate::reaper::Reaper;
use crate::streams::{StreamHub, StreamIds};
use crate::sys::{Doing as _, OsError};
use crate::volumes::Volumes;

enum Slot {
    /// Its id is taken.
    Creating,
    Present(Arc<Container>),
}

/// Shared by everything in the agent; a copy is another handle.
#[derive(Clone)]
pub struct Sandbox {
    /// The agent's own binary, which is executed anew for every process of a container.
    pub program: Arc<OwnedFd>,
    /// The standard streams.
    pub streams: StreamHub,
    /// The ends of processes.
    pub reaper: Reaper,
    /// What the host is told.
    pub events: Events,
    /// The guest's network.
    pub network: Arc<tokio::sync::Mutex<Network>>,
    /// Names that the host knows.
    pub names: Names,
    /// Copies of volumes.
    pub volumes: Volumes,
    /// Volumes that are the host's own directories.
    pub host_dirs: HostDirs,
    containers: Arc<Mutex<HashMap<String, Slot>>>,
    /// When containers were removed whose files the kernel may still know by their names.
    removed: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Sandbox {
    /// An empty one.
    pub fn new() -> Result<Self, OsError> {
        use rustix::fs::{Mode, OFlags, open};
        let program = open(
            "/proc/self/exe",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .doing(|| "open the agent's binary")?;
        let reaper = Reaper::default();
        Ok(Self {
            program: Arc::new(program),
            streams: StreamHub::default(),
            network: Arc::new(tokio::sync::Mutex::new(Network::new(reaper.clone()))),
            reaper,
            events: Events::default(),
            names: Names::default(),
            volumes: Volumes::default(),
            host_dirs: HostDirs::default(),
            containers: Arc::default(),
            removed: Arc::default(),
        })
    }

    /// Makes a container.
    pub async fn create(
        &self,
        id: &str,
        config: &[u8],
        ids: &StreamIds,
    ) -> Result<Arc<Container>, AgentError> {
        check_id(id)?;
        {
            let mut containers = self.lock();
            if containers.contains_key(id) {
                return Err(AgentError::ContainerExists(id.to_owned()));
            }
            containers.insert(id.to_owned(), Slot::Creating);
        }
        self.forget_files_of(id).await;
        let created = container::create(self, id, config, ids).await;
        if created.is_err() {
            self.volumes.remove(id).await;
        }
        let mut containers = self.lock();
        match &created {
            Ok(container) => {
                containers.insert(id.to_owned(), Slot::Present(container.clone()));
            }
            Err(_) => {
                containers.remove(id);
            }
        }
        created
    }

    /// Makes the copy of a volume of a container's, before the container or while it is there.
    pub async fn update_volume(
        &self,
        request: &rvm_protocol::agent::UpdateVolumeRequest,
    ) -> Result<(), AgentError> {
        check_id(&request.container_id)?;
        let updated = self.volumes.update(request).await;
        updated.map_err(AgentError::Volume)
    }

    /// Finds a container.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, AgentError> {
        match self.lock().get(id) {
            Some(Slot::Present(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(container::StateError::Creating.into()),
            None => Err(AgentError::NoSuchContainer(id.to_owned())),
        }
    }

    /// Kills what is left of a container and forgets it.
    pub async fn remove(&self, id: &str) -> Result<(), AgentError> {
        self.container(id)?.remove().await?;
        self.volumes.remove(id).await;
        self.lock().remove(id);
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        removed.retain(|_, at| at.elapsed() < SHARED_CACHE_TIMEOUT);
        removed.insert(id.to_owned(), Instant::now());
        Ok(())
    }

    /// Waits until the kernel asks the host anew for the files of a container with this id: those of
    /// an earlier one had the same names.
    async fn forget_files_of(&self, id: &str) {
        let removed = {
            let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
            removed.remove(id)
        };
        if let Some(at) = removed {
            tokio::time::sleep_until((at + SHARED_CACHE_TIMEOUT).into()).await;
        }
    }

    /// Waits until what ended processes wrote is on the host.
    pub async fn write_back(&self) {
        if let Some(pid) = boot::start_writing_back() {
            // It reports to nobody; that it has ended is enough.
            let _ = self.reaper.expect(pid).await;
        }
    }

    /// Ends every container and unmounts what is shared with the host.
    pub async fn shut_down(&self) {
        let ids: Vec<_> = self.lock().keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.remove(&id).await {
                log::warn!("container {id}: {error}");
            }
        }
        boot::unmount_shared();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_id(id: &str) -> Result<(), AgentError> {
    let is_valid = !id.is_empty()
        && id.len() <= MAX_CONTAINER_ID
        && id
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"_+.-".contains(&c));
    if is_valid {
        Ok(())
    } else {
        Err(AgentError::InvalidId(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for id in ["a", "8f3-x_Y.z+1", "a.b", &"x".repeat(MAX_CONTAINER_ID)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", "a/b", "a b", "ü", &"x".repeat(MAX_CONTAINER_ID + 1)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
