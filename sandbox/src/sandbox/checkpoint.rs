//! Checkpoints: a machine with its containers is written to files, and goes on from them later.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rvm_protocol::ContainerId;

use super::{Guest, Sandbox};
use crate::checkpoint::{
    ImageError, Manifest, NewImage, SavedContainer, SavedDisk, Streams, UpdatedLimits,
};
use crate::engine::{EngineError, MachineEnd, Save};
use crate::guest::agent::AgentError;
use crate::guest::input_gate;
use crate::guest::stdio::{HostStdio, Relay, StdioError};
use crate::network::SavedCard;
use crate::share::{DISKS, StorageError, pod_mounts};
use crate::sizing::Size;
use rvm_sys::fault_point;

/// A machine could not be written to a checkpoint, or not go on from one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Something that a machine has now cannot be saved.
    #[error("the container {0}")]
    Unsupported(&'static str),
    /// The same of another container of the machine than the one that it was made for.
    #[error("container {id} of the pod {reason}")]
    Member {
        /// The container.
        id: ContainerId,
        /// What it is.
        reason: &'static str,
    },
    /// The checkpoint has no container of this id, and these instead.
    #[error("there is no container {id} in the checkpoint of the pod; there are: {found}")]
    NoMember {
        /// What was looked for.
        id: ContainerId,
        /// All that there are.
        found: String,
    },
    /// The machine has not such a container that waits for its restore.
    #[error(
        "container {0} does not wait for its restore in the sandbox, which must have been restored \
         from the same checkpoint"
    )]
    NotMissing(ContainerId),
    /// A volume is another one than the container had.
    #[error(
        "the volume {} is shared by containers of the pod, and is another directory than in the \
         checkpoint", .0.display()
    )]
    Volume(PathBuf),
    /// What a container shares with others of its pod could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file in the sandbox's directory could not be read or written.
    #[error("cannot read or write in the sandbox's directory")]
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
pub struct ToSave {
    /// All containers of the machine that have not ended, the one that it was made for first.
    pub containers: Vec<ContainerToSave>,
    /// Whether they go on.
    pub leave_running: bool,
}

/// A container that is to be saved with its machine.
#[derive(Clone, Debug)]
pub struct ContainerToSave {
    /// The container.
    pub id: ContainerId,
    /// Whether its processes are paused.
    pub paused: bool,
    /// The init process's pid in the guest.
    pub guest_pid: u32,
    /// Its streams, if they are known.
    pub streams: Option<Streams>,
    /// Whether another process than this one copies its standard input.
    pub is_elsewhere: bool,
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
        wanted: ToSave,
        dir: &Path,
        meanwhile: impl Future<Output = Result<(), CheckpointError>>,
    ) -> Result<(), CheckpointError> {
        let supported = self.machine().engine().checkpoints;
        supported.map_err(EngineError::Unsupported)?;
        // One at a time: two may be for the same directory.
        let missing = self.missing().lock().await;
        if !missing.is_empty() {
            let waits = "waits for others of its pod, which have not been restored";
            return Err(CheckpointError::Unsupported(waits));
        }
        // Neither changes while the machine is saved.
        let (network, size) = (self.network().lock().await, self.size().lock().await);
        let manifest = self.manifest(&wanted, size.now(), network.cards()).await?;
        let image = NewImage::create(dir, &manifest)?;
        // What this process reads from then on would be lost with the machine.
        let gate = match wanted.leave_running {
            true => None,
            false => Some(close_input().await?),
        };
        let begin = Instant::now();
        let step = Save::Write {
            image: &image,
            go_on: wanted.leave_running,
        };
        let save = async {
            self.pause(&wanted).await?;
            fault_point!("checkpoint.frozen").map_err(CheckpointError::Record)?;
            self.machine().save(step).await?;
            fault_point!("checkpoint.saved").map_err(CheckpointError::Record)?;
            drop((network, size));
            meanwhile.await
        };
        let saved = save.await;
        let mut resumed = Ok(());
        if wanted.leave_running || saved.is_err() {
            resumed = self.resume(&wanted).await;
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

    /// Freezes the processes of the containers that are not paused, one container after the other.
    async fn pause(&self, wanted: &ToSave) -> Result<(), CheckpointError> {
        for one in wanted.containers.iter().filter(|one| !one.paused) {
            self.guest().agent().pause(&one.id).await?;
        }
        if !wanted.leave_running {
            let noted = self.guest().dir().set_saving(true);
            noted.map_err(CheckpointError::Record)?;
        }
        Ok(())
    }

    /// Thaws them, and returns the first error.
    async fn resume(&self, wanted: &ToSave) -> Result<(), AgentError> {
        if !wanted.leave_running {
            // It may not have been noted. It is believed of a machine that has ended alone.
            let _ = self.guest().dir().set_saving(false);
        }
        let mut resumed = Ok(());
        for one in wanted.containers.iter().filter(|one| !one.paused) {
            resumed = resumed.and(self.guest().agent().resume(&one.id).await);
        }
        resumed
    }

    /// What the host must know of the machine and its containers.
    async fn manifest(
        &self,
        wanted: &ToSave,
        now: Size,
        cards: Vec<SavedCard>,
    ) -> Result<Manifest, CheckpointError> {
        let Some((first, others)) = wanted.containers.split_first() else {
            return Err(CheckpointError::Unsupported("has ended"));
        };
        let container = self.describe(first, wanted.leave_running, false).await?;
        let mut members = Vec::new();
        for one in others {
            let described = self.describe(one, wanted.leave_running, true).await;
            members.push(described.map_err(|error| match error {
                CheckpointError::Unsupported(reason) => CheckpointError::Member {
                    id: one.id.clone(),
                    reason,
                },
                other => other,
            })?);
        }
        Ok(Manifest {
            container,
            members,
            machine: self.shape(),
            now,
            cards,
        })
    }

    /// What the host must know of a container whose machine can be saved.
    async fn describe(
        &self,
        one: &ContainerToSave,
        leave_running: bool,
        is_member: bool,
    ) -> Result<SavedContainer, CheckpointError> {
        let unsupported = |reason| Err(CheckpointError::Unsupported(reason));
        let Some(streams) = one.streams else {
            return unsupported("was created by an older rvm");
        };
        if one.is_elsewhere && streams.stdin != 0 && !leave_running {
            return unsupported(
                "has standard input, of which some would be lost: another process than that of its \
                 sandbox reads it; the pod can be left running",
            );
        }
        let id = self.guest_id(&one.id)?;
        let shared = self.guest().dir().shared();
        let disks = self.disks_to_save(one, leave_running).await?;
        let has_images = shared.join(id.as_str()).join(DISKS).exists();
        if is_member && (has_images || !disks.is_empty()) {
            return unsupported("has disks, and it is not the one that its machine was made for");
        }
        Ok(SavedContainer {
            guest_pid: one.guest_pid,
            streams,
            disks,
            volumes: pod_mounts(&shared, id.as_str())?,
            updated: one.updated.clone(),
            id,
        })
    }

    /// The disks of a container whose machine can be saved.
    async fn disks_to_save(
        &self,
        one: &ContainerToSave,
        leave_running: bool,
    ) -> Result<Vec<SavedDisk>, CheckpointError> {
        let unsupported = |reason| Err(CheckpointError::Unsupported(reason));
        if self.guest().has_shared_disks(&one.id) {
            return unsupported("has more disks than its machine has slots for");
        }
        let disks = self.disks().lock().await.of(&one.id);
        // The guest's kernel would go on to write what it has of them in its memory.
        if leave_running && disks.iter().any(|disk| !disk.read_only) {
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
        let alias = alias.filter(|(host, _)| host == id);
        Ok(alias.map_or_else(|| id.clone(), |(_, guest)| guest))
    }

    /// Takes over what the machine that was restored has for the container that it was made for.
    pub async fn take_over(
        &self,
        id: &ContainerId,
        manifest: &Manifest,
    ) -> Result<(), CheckpointError> {
        if manifest.now.memory_mib != manifest.machine.start.memory_mib {
            self.machine().resize(manifest.now).await?;
        }
        self.take_disks_over(id, &manifest.container.disks).await;
        Ok(())
    }

    /// Notes that a process stands for a container of the machine, which was restored. The guest
    /// gets the files that it had open once that is so for all of its containers: the files of a
    /// member are shared when its bundle is known.
    pub async fn adopted(&self, saved: &SavedContainer) -> Result<(), CheckpointError> {
        let mut missing = self.missing().lock().await;
        let found = missing.iter().position(|one| one == saved);
        let index = found.ok_or_else(|| CheckpointError::NotMissing(saved.id.clone()))?;
        missing.swap_remove(index);
        if missing.is_empty() {
            self.machine().save(Save::Adopted).await?;
        }
        Ok(())
    }
}

impl Guest {
    /// Connects a container of a machine that was restored to these streams, and gives it this host
    /// name. Its processes stand still until it is started.
    pub async fn adopt(
        &self,
        id: &ContainerId,
        hostname: Option<&str>,
        saved: &SavedContainer,
        host: HostStdio,
    ) -> Result<Relay, CheckpointError> {
        let adopting = async {
            self.agent().adopt(id, hostname).await?;
            let relay = Relay::go_on(self.dir(), host, &saved.streams)?;
            self.set_restored(id);
            Ok(relay)
        };
        tokio::select! {
            biased;
            end = self.ended() => Err(CheckpointError::Ended(end)),
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
