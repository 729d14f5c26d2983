//! The guest's copies of volumes that are updated as a whole; see
//! [`crate::share::is_atomic_volume`].

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify;
use rvm_protocol::agent::UpdateVolumeRequest;
use rvm_protocol::{ContainerId, ProcessId};

use super::Guest;
use crate::share::{DATA, read_volume};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;
use rvm_sys::readiness::Readable;

/// How long an update may take: its owner moves the links after it has exchanged the directory.
const SETTLE: Duration = Duration::from_millis(50);

/// How often a volume is read that cannot be watched: a host has few inotify watches.
const LOOK: Duration = Duration::from_millis(500);

/// How often an update is read again that another update overtook.
const TRIES: u32 = 5;

/// The volumes of a container, and what the guest has of them.
pub struct Volumes {
    id: ContainerId,
    paths: Vec<PathBuf>,
    sent: Vec<UpdateVolumeRequest>,
    /// None if they cannot be watched.
    changes: Option<Readable>,
}

impl Volumes {
    /// Begins to watch, and gives the guest the first copies. None if there are no volumes.
    pub async fn send(
        id: &ContainerId,
        paths: Vec<PathBuf>,
        guest: &Guest,
    ) -> Result<Option<Self>, VolumeError> {
        if paths.is_empty() {
            return Ok(None);
        }
        let changes = watch(&paths).inspect_err(|error| {
            tracing::info!("the volumes of {id} are looked at, for want of a watch: {error}");
        });
        let mut volumes = Self {
            id: id.clone(),
            changes: changes.ok(),
            sent: Vec::new(),
            paths,
        };
        for number in 0..volumes.paths.len() {
            volumes.sent.push(UpdateVolumeRequest::new());
            volumes.update(number, guest).await?;
        }
        Ok(Some(volumes))
    }

    /// Passes on what happens to the volumes, until the container has ended.
    pub fn follow(mut self, guest: Arc<Guest>) {
        tokio::spawn(async move {
            let init = ProcessId::init(self.id.clone());
            tokio::select! {
                () = self.pass_on(&guest) => {}
                _ = guest.wait(&init) => {}
            }
        });
    }

    async fn pass_on(&mut self, guest: &Guest) {
        loop {
            self.changed().await;
            for number in 0..self.paths.len() {
                if let Err(error) = self.update(number, guest).await {
                    tracing::warn!("{}", chain(&error));
                }
            }
        }
    }

    /// Returns when something has changed, perhaps.
    async fn changed(&self) {
        match &self.changes {
            Some(changes) => {
                // It fails only if the queue is gone, and then there is nothing to be told.
                if changes.read(drain).await.is_err() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(SETTLE).await;
            }
            None => tokio::time::sleep(LOOK).await,
        }
    }

    async fn update(&mut self, number: usize, guest: &Guest) -> Result<(), VolumeError> {
        let path = &self.paths[number];
        let failed = |source: io::Error| VolumeError {
            path: path.clone(),
            source,
        };
        if self.changes.is_none()
            && fs::read_link(path.join(DATA))
                .is_ok_and(|version| version == Path::new(&self.sent[number].version))
        {
            return Ok(());
        }
        let mut contents = read_settled(path).await.map_err(failed)?;
        contents.container_id = self.id.to_string();
        contents.volume = u32::try_from(number)
            .map_err(io::Error::other)
            .map_err(failed)?;
        if contents != self.sent[number] {
            let sent = guest.agent().update_volume(&self.id, &contents).await;
            sent.map_err(|error| failed(io::Error::other(error)))?;
            fault_point!("volume.sent").map_err(failed)?;
            self.sent[number] = contents;
        }
        Ok(())
    }
}

/// A volume cannot be copied into the guest.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy the volume {} into the guest", path.display())]
pub struct VolumeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is read while an update takes away the version before it is read anew.
async fn read_settled(path: &Path) -> io::Result<UpdateVolumeRequest> {
    let mut tries = 0;
    loop {
        match fault_point!("volume.read").and_then(|()| read_volume(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(SETTLE).await;
            }
            other => return other,
        }
    }
}

fn watch(paths: &[PathBuf]) -> io::Result<Readable> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    fault_point!("volume.watch")?;
    let queue = inotify::init(flags)?;
    for path in paths {
        let kinds = inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&queue, path, kinds)?;
    }
    Readable::new(queue.as_fd())
}

/// Takes what is in the queue; what it is does not matter.
fn drain(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    rustix::io::read(fd, &mut buffer)?;
    while rustix::io::read(fd, &mut buffer).is_ok_and(|count| count > 0) {}
    Ok(())
}
