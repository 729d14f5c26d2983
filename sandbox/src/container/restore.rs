//! The start of a container that goes on from a checkpoint. The one that the machine was made for
//! restores it; each member of its pod then shares its files, and takes over what the machine has
//! of it.
//!
//! ```text
//!   restore of the sandbox ──> its processes go on ── their requests for files wait ──┐
//!   restore of a member ──> its files are shared ──> all are there ──> files are open <┘
//! ```

use std::sync::Arc;

use rvm_protocol::ContainerId;

use super::start::{Place, Start, StartError};
use crate::checkpoint::{Image, SavedContainer};
use crate::control;
use crate::guest::stdio::{HostStdio, Relay};
use crate::sandbox::{CheckpointError, SandboxError, Volumes, disks};
use crate::share::SharedMount;
use crate::spec::Bundle;
use crate::spec::pod::Role;
use crate::spec::translate::Translation;
use crate::state::Status;
use rvm_sys::fault_point;

/// Refuses what this checkpoint has not.
pub(super) fn check_restorable(
    id: &ContainerId,
    bundle: &Bundle,
    image: &Image,
) -> Result<(), CheckpointError> {
    let Some(saved) = saved_of(id, &bundle.role, image) else {
        let all: Vec<_> = image
            .manifest
            .containers()
            .map(|one| one.id.as_str())
            .collect();
        return Err(CheckpointError::NoMember {
            id: id.clone(),
            found: all.join(", "),
        });
    };
    if bundle.has_terminal() != saved.streams.terminal {
        return Err(CheckpointError::Unsupported(match bundle.has_terminal() {
            true => "has no terminal in its checkpoint; process.terminal of config.json is true",
            false => "has a terminal in its checkpoint; process.terminal of config.json is false",
        }));
    }
    Ok(())
}

/// What a checkpoint has of a container. A member of a pod has the id that it had; the one that the
/// machine is made for may have another.
fn saved_of<'i>(id: &ContainerId, role: &Role, image: &'i Image) -> Option<&'i SavedContainer> {
    let manifest = &image.manifest;
    match role {
        Role::Member(_) => manifest.members.iter().find(|member| member.id == *id),
        Role::Alone | Role::Sandbox => Some(&manifest.container),
    }
}

/// Refuses a volume that containers of a pod share if the container had another one.
fn check_volumes(saved: &SavedContainer, mounts: &[SharedMount]) -> Result<(), CheckpointError> {
    let name = |mount: &SharedMount| Some(mount.reference.as_ref()?.file_name()?.to_owned());
    let is_known = |mount: &SharedMount| {
        name(mount).is_none_or(|name| saved.volumes.iter().any(|known| **known == *name))
    };
    match mounts.iter().find(|mount| !is_known(mount)) {
        Some(other) => Err(CheckpointError::Volume(other.source.clone())),
        None => Ok(()),
    }
}

impl Start<'_> {
    /// What the container goes on from.
    pub(super) fn saved(&self) -> Option<&SavedContainer> {
        saved_of(self.container.id(), &self.bundle.role, self.image?)
    }

    /// Refuses files of a restored container that its machine cannot take for those that it had.
    pub(super) fn check_files(&self, translation: &Translation) -> Result<(), StartError> {
        let Some(saved) = self.saved() else {
            return Ok(());
        };
        check_volumes(saved, &translation.mounts)?;
        if matches!(self.bundle.role, Role::Member(_)) {
            disks::reopen(&translation.disks, &saved.disks)?;
        }
        Ok(())
    }

    /// Takes over the container in its machine, which was restored.
    pub(super) async fn adopt(
        &self,
        saved: &SavedContainer,
        place: &Place,
        translation: Translation,
        host: HostStdio,
    ) -> Result<Relay, StartError> {
        let (id, guest) = (self.container.id(), place.guest());
        let volumes = Volumes::send(id, translation.volumes, guest).await?;
        let hostname = self.bundle.spec.hostname().as_deref();
        let relay = guest.adopt(id, hostname, saved, host).await?;
        match place {
            Place::Owned(sandbox) => {
                if let (Some(image), Role::Alone | Role::Sandbox) = (self.image, &self.bundle.role)
                {
                    sandbox.take_over(id, &image.manifest).await?;
                }
                sandbox.adopted(saved).await?;
            }
            Place::Joined(guest) => {
                let saved = Box::new(saved.clone());
                control::ask(guest.dir(), control::Request::Adopted { saved }).await?;
            }
        }
        fault_point!("start.adopted").map_err(SandboxError::Record)?;
        self.show(&translation.spec, guest)?;
        if let Some(volumes) = volumes {
            volumes.follow(Arc::clone(guest));
        }
        let locked = self.container.lock()?;
        locked.step(Status::Created, |state| state.go_on_from(saved))?;
        Ok(relay)
    }
}
