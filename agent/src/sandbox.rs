//! What the machine holds: its containers, its network, copies of volumes, and disks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rvm_protocol::agent::{MountDisksRequest, UpdateVolumeRequest};
use rvm_protocol::{ContainerId, SHARED_CACHE_TIMEOUT};
use rvm_sys::error_chain::chain;

use crate::boot;
use crate::container::{self, AbsentDevices, Container, ContainerError, Runtime, StateError};
use crate::disks::{DiskError, Disks};
use crate::names::Names;
use crate::network::Network;
use crate::streams::StreamIds;
use crate::sys::OsError;
use crate::volumes::Copies;

/// Why an operation on the sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("container with given ID already exists: {0}")]
    ContainerExists(ContainerId),
    #[error("container does not exist: {0}")]
    NoSuchContainer(ContainerId),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Disks(#[from] DiskError),
    #[error("mount the host's directory")]
    Share(#[source] OsError),
    #[error("copy a volume")]
    CopyVolume(#[source] std::io::Error),
}

enum Slot {
    /// The id is reserved.
    Creating,
    Present(Arc<Container>),
}

/// Shared by all requests; a copy is another handle.
#[derive(Clone)]
pub struct Sandbox {
    pub runtime: Runtime,
    pub network: Arc<tokio::sync::Mutex<Network>>,
    pub names: Names,
    volumes: Copies,
    disks: Disks,
    /// Whether the host's directory is mounted.
    is_sharing: Arc<Mutex<bool>>,
    containers: Arc<Mutex<HashMap<ContainerId, Slot>>>,
    /// When containers were removed whose files the kernel may still cache by their names.
    removed: Arc<Mutex<HashMap<ContainerId, Instant>>>,
}

impl Sandbox {
    /// A sandbox without containers.
    pub fn new() -> Result<Self, OsError> {
        let runtime = Runtime::new()?;
        let network = Network::new(runtime.reaper.clone());
        Ok(Self {
            runtime,
            network: Arc::new(tokio::sync::Mutex::new(network)),
            names: Names::default(),
            volumes: Copies::default(),
            disks: Disks::default(),
            is_sharing: Arc::default(),
            containers: Arc::default(),
            removed: Arc::default(),
        })
    }

    /// Mounts the host's directory, unless it is mounted.
    pub fn share(&self) -> Result<(), SandboxError> {
        let mut is_sharing = self.lock_sharing();
        if !*is_sharing {
            boot::mount_shared().map_err(SandboxError::Share)?;
            *is_sharing = true;
        }
        Ok(())
    }

    /// Makes a container, whose init process then waits for StartContainer.
    pub async fn create(
        &self,
        id: &ContainerId,
        config: (&[u8], &AbsentDevices),
        ids: &StreamIds,
    ) -> Result<Arc<Container>, SandboxError> {
        {
            let mut containers = self.lock();
            if containers.contains_key(id) {
                return Err(SandboxError::ContainerExists(id.clone()));
            }
            containers.insert(id.clone(), Slot::Creating);
        }
        self.wait_for_cache_of(id).await;
        let created =
            container::create(&self.runtime, id, config, ids, self.disks.devices(id)).await;
        if created.is_err() {
            self.volumes.remove(id).await;
            self.disks.remove(id).await;
            self.note_removed(id);
        }
        let mut containers = self.lock();
        match &created {
            Ok(container) => {
                containers.insert(id.clone(), Slot::Present(container.clone()));
            }
            Err(_) => {
                containers.remove(id);
            }
        }
        Ok(created?)
    }

    /// Makes or updates the copy of a container's volume, before or after the container is made.
    pub async fn update_volume(
        &self,
        container: &ContainerId,
        request: &UpdateVolumeRequest,
    ) -> Result<(), SandboxError> {
        self.wait_for_cache_of(container).await;
        let updated = self.volumes.update(container, request).await;
        updated.map_err(SandboxError::CopyVolume)
    }

    /// Attaches a container's disks and mounts the file systems on them, before the container is
    /// made.
    pub async fn mount_disks(
        &self,
        container: &ContainerId,
        request: &MountDisksRequest,
    ) -> Result<(), SandboxError> {
        if self.lock().contains_key(container) {
            return Err(SandboxError::ContainerExists(container.clone()));
        }
        self.wait_for_cache_of(container).await;
        let mounted = self.disks.mount(container, request).await;
        if mounted.is_err() {
            self.note_removed(container);
        }
        Ok(mounted?)
    }

    /// Waits until the disks have the data that ended processes wrote; shared files have it
    /// already. Disks of containers that have ended are unmounted, so that the host finds their
    /// file systems clean.
    pub async fn write_back(&self) {
        let containers: Vec<_> = {
            let present = self.lock();
            let present = present.iter().filter_map(|(id, slot)| match slot {
                Slot::Present(container) => Some((id.clone(), container.init().has_finished())),
                Slot::Creating => None,
            });
            present.collect()
        };
        for (id, has_ended) in containers {
            match has_ended {
                true => self.disks.unmount(&id).await,
                false => self.disks.sync(&id).await,
            }
        }
    }

    pub fn container(&self, id: &ContainerId) -> Result<Arc<Container>, SandboxError> {
        match self.lock().get(id) {
            Some(Slot::Present(container)) => Ok(container.clone()),
            Some(Slot::Creating) => Err(ContainerError::from(StateError::Creating).into()),
            None => Err(SandboxError::NoSuchContainer(id.clone())),
        }
    }

    /// Kills the remaining processes of a container and forgets it.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), SandboxError> {
        let container = self.container(id);
        if let Err(SandboxError::NoSuchContainer(_)) = container {
            // It may never have been made.
            self.disks.remove(id).await;
            self.note_removed(id);
        }
        container?.remove().await?;
        self.volumes.remove(id).await;
        self.disks.remove(id).await;
        self.lock().remove(id);
        self.note_removed(id);
        Ok(())
    }

    /// Notes when the files of a container were last looked up.
    fn note_removed(&self, id: &ContainerId) {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        removed.retain(|_, at| at.elapsed() < SHARED_CACHE_TIMEOUT);
        removed.insert(id.clone(), Instant::now());
    }

    /// Waits until the kernel no longer trusts what it has cached of the files of an earlier
    /// container with this id: those of the new one have the same names.
    async fn wait_for_cache_of(&self, id: &ContainerId) {
        let removed = {
            let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
            removed.remove(id)
        };
        if let Some(at) = removed {
            tokio::time::sleep_until((at + SHARED_CACHE_TIMEOUT).into()).await;
        }
    }

    /// Ends every container and unmounts what is shared with the host.
    pub async fn shut_down(&self) {
        let ids: Vec<_> = self.lock().keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.remove(&id).await {
                log::warn!("container {id}: {}", chain(&error));
            }
        }
        if std::mem::take(&mut *self.lock_sharing()) {
            boot::unmount_shared();
        }
    }

    fn lock_sharing(&self) -> MutexGuard<'_, bool> {
        self.is_sharing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Slot>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
