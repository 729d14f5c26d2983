//! Checkpoints: a machine with its container is written to files, and goes on from them later.

use std::io;
use std::path::Path;
use std::time::Instant;

use rvm_protocol::ContainerId;

use super::Sandbox;
use crate::checkpoint::{Image, ImageError, Manifest, NewImage, SavedDisk, Streams, UpdatedLimits};
use crate::engine::{EngineError, MachineEnd, Save};
use crate::guest::agent::AgentError;
use crate::guest::input_gate;
use crate::guest::stdio::{HostStdio, Relay, StdioError};
use rvm_sys::fault_point;

/// A machine could not be written to a checkpoint, or not go on from one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Something that a machine has now cannot be saved.
    #[error("the container {0}")]
    Unsupported(&'static str),
    /// The id by which the guest knows the container could not be read.
    #[error("cannot find the container in its guest")]
    Record(#[source] io::Error),
    /// The files could not be written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The engine cannot save machines, or this one not now.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The agent did not freeze or thaw the container's processes.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The container's streams could not be connected.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// What was to be done meanwhile was not, for this reason.
    #[error("{0}")]
    GivenUp(&'static str),
    /// The machine ended meanwhile.
    #[error("{0}")]
    Ended(MachineEnd),
}

/// What is to be saved.
#[derive(Clone, Debug)]
pub struct ToSave<'a> {
    /// The only container of the machine.
    pub id: &'a ContainerId,
    /// Whether its processes are paused.
    pub paused: bool,
    /// The init process's pid in the guest.
    pub guest_pid: u32,
    /// Whether it goes on.
    pub leave_running: bool,
    /// Its limits, if updates have changed them.
    pub updated: Option<UpdatedLimits>,
}

impl Sandbox {
    /// Writes the machine to a checkpoint in a directory. Unless its processes are to go on, they
    /// stand still meanwhile, and the machine has ended then. Else they stand still for a moment,
    /// and the machine is written while they run; `meanwhile` is done in that moment. If that
    /// fails, so does this.
    pub async fn checkpoint(
        &self,
        wanted: ToSave<'_>,
        dir: &Path,
        meanwhile: impl Future<Output = Result<(), CheckpointError>>,
    ) -> Result<(), CheckpointError> {
        let streams = self.streams_to_save(wanted.id)?;
        // One at a time: two may be for the same directory.
        let _saving = self.saving().lock().await;
        // Neither changes while the machine is saved.
        let (network, size) = (self.network().lock().await, self.size().lock().await);
        let manifest = Manifest {
            container: self.guest_id(wanted.id)?,
            guest_pid: wanted.guest_pid,
            streams,
            machine: self.shape(),
            now: size.now(),
            cards: network.cards(),
            disks: self.disks_to_save(&wanted).await?,
            updated: wanted.updated.clone(),
        };
        let image = NewImage::create(dir, &manifest)?;
        // What this process reads from then on would be lost with the machine.
        let gate = match wanted.leave_running {
            true => None,
            false => Some(close_input().await?),
        };
        let (agent, begin) = (self.guest().agent(), Instant::now());
        if !wanted.paused {
            agent.pause(wanted.id).await?;
        }
        let step = Save::Write {
            image: &image,
            go_on: wanted.leave_running,
        };
        let save = async {
            fault_point!("checkpoint.frozen").map_err(CheckpointError::Record)?;
            self.machine().save(step).await?;
            fault_point!("checkpoint.saved").map_err(CheckpointError::Record)?;
            drop((network, size));
            meanwhile.await
        };
        let saved = save.await;
        let mut resumed = Ok(());
        if !wanted.paused && (wanted.leave_running || saved.is_err()) {
            resumed = agent.resume(wanted.id).await;
            tracing::debug!("the container has stood still for {:?}", begin.elapsed());
        }
        // Why the machine could not be saved explains more.
        saved?;
        resumed?;
        if wanted.leave_running {
            self.machine().save(Save::Finish).await?;
        }
        image.finish()?;
        if let Some(gate) = gate {
            gate.for_good();
        }
        Ok(())
    }

    /// The streams of a container whose machine can be saved.
    fn streams_to_save(&self, id: &ContainerId) -> Result<Streams, CheckpointError> {
        let guest = self.guest();
        let supported = self.machine().engine().checkpoints;
        supported.map_err(EngineError::Unsupported)?;
        let elsewhere = "was started by another process than its machine";
        let streams = guest.streams_of(id);
        streams.ok_or(CheckpointError::Unsupported(elsewhere))
    }

    /// The disks of a container whose machine can be saved.
    async fn disks_to_save(&self, wanted: &ToSave<'_>) -> Result<Vec<SavedDisk>, CheckpointError> {
        let unsupported = |reason| Err(CheckpointError::Unsupported(reason));
        if self.guest().has_shared_disks(wanted.id) {
            return unsupported("has more disks than its machine has slots for");
        }
        let disks = self.disks().lock().await.of(wanted.id);
        // The guest's kernel would go on to write what it has of them in its memory.
        if wanted.leave_running && disks.iter().any(|disk| !disk.read_only) {
            return unsupported(
                "has a disk that it can write to, which would not stay as it is in the checkpoint; \
                 it cannot be left running",
            );
        }
        Ok(disks)
    }

    /// The id by which the guest knows a container.
    fn guest_id(&self, id: &ContainerId) -> Result<ContainerId, CheckpointError> {
        let alias = self.guest().dir().alias();
        let alias = alias.map_err(CheckpointError::Record)?;
        Ok(alias.map_or_else(|| id.clone(), |(_, guest)| guest))
    }

    /// Connects the container of a machine that was restored to these streams, and gives it this
    /// host name. Its processes stand still until it is started.
    pub async fn adopt(
        &self,
        id: &ContainerId,
        hostname: Option<&str>,
        image: &Image,
        host: HostStdio,
    ) -> Result<Relay, CheckpointError> {
        let (guest, manifest) = (self.guest(), &image.manifest);
        let adopting = async {
            guest.agent().adopt(id, hostname).await?;
            let relay = Relay::go_on(guest.dir(), host, &manifest.streams)?;
            guest.set_streams(id, manifest.streams);
            self.machine().save(Save::DropStreams).await?;
            if manifest.now.memory_mib != manifest.machine.start.memory_mib {
                self.machine().resize(manifest.now).await?;
            }
            self.take_disks_over(id, &manifest.disks).await;
            guest.set_restored(id);
            Ok(relay)
        };
        tokio::select! {
            biased;
            end = guest.ended() => Err(CheckpointError::Ended(end)),
            done = adopting => done,
        }
    }
}

async fn close_input() -> Result<input_gate::Closed, CheckpointError> {
    let closed = tokio::task::spawn_blocking(input_gate::close).await;
    // It panics only if the runtime is being shut down.
    let closed = closed.ok().flatten();
    closed.ok_or(CheckpointError::Unsupported(
        "has not read its standard input, of which some is on its way; it can be left running",
    ))
}
