//! What every process can ask of a sandbox's guest, whoever owns its machine.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rvm_protocol::agent::CheckResponse;
use rvm_protocol::{ContainerId, ProcessId};

use super::SandboxError;
use super::failure::GuestFailure;
use crate::checkpoint::Streams;
use crate::config::Config;
use crate::dir::{Record, SandboxDir};
use crate::engine::{MachineEnd, MachineEnded};
use crate::guest::agent::{Agent, AgentError, Exit};
use crate::guest::document::Document;
use crate::guest::stdio::{HostStdio, Relay};
use crate::host::timings::Timings;
use crate::spec::devices;
use rvm_sys::readiness::Readable;

/// How long the agent of another process's machine may take to create or start a container, if the
/// configuration does not say. Hooks in the guest count.
const JOINED_TIMEOUT: Duration = Duration::from_secs(180);

/// How long a guest may take to bring to the host what the processes of an ended container wrote:
/// as much as the guest's memory holds, on a slow disk.
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for a container that was killed: somebody waits for its end.
const KILLED_WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a machine may take to end once its agent has hung up. It frees the guest's memory
/// meanwhile.
pub(crate) const HANGUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A guest whose agent can be called.
pub struct Guest {
    dir: SandboxDir,
    record: Record,
    agent: Agent,
    ended: MachineEnded,
    /// How long a call may take that creates or starts a container.
    limit: Duration,
    disks: HeldDisks,
    /// The containers that were restored, and go on when they are started.
    restored: Mutex<HashSet<ContainerId>>,
}

/// Of each container with disks, the files that must stay open for their locks.
type HeldDisks = Mutex<HashMap<ContainerId, Vec<File>>>;

impl Guest {
    /// The guest of a machine. A call that creates or starts something in it may take `limit`.
    pub(super) fn new(
        dir: SandboxDir,
        record: Record,
        agent: Agent,
        ended: MachineEnded,
        limit: Duration,
    ) -> Self {
        Self {
            dir,
            record,
            agent,
            ended,
            limit,
            disks: HeldDisks::default(),
            restored: Mutex::default(),
        }
    }

    /// Finds the guest of a sandbox that another process owns. Called within a tokio runtime.
    pub fn join(dir: SandboxDir, config: &Config) -> Result<Self, SandboxError> {
        let gone = || SandboxError::Gone(dir.path().display().to_string());
        let record = dir.record().map_err(SandboxError::Processes)?;
        let record = record.ok_or_else(gone)?;
        // The others end with the first.
        let process = record.machine.first().map_or(Ok(None), |id| id.open());
        let process = process.map_err(SandboxError::Processes)?.ok_or_else(gone)?;
        let pidfd = Readable::new(process.as_fd()).map_err(SandboxError::Processes)?;
        Ok(Self {
            agent: Agent::connect(&dir)?,
            ended: MachineEnded::of_process(pidfd),
            limit: config.start_timeout.unwrap_or(JOINED_TIMEOUT),
            disks: HeldDisks::default(),
            restored: Mutex::default(),
            record,
            dir,
        })
    }

    /// The sandbox's directory.
    pub fn dir(&self) -> &SandboxDir {
        &self.dir
    }

    /// The processes that run the machine, and their engine.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How long a call may take that creates or starts a container.
    pub fn start_timeout(&self) -> Duration {
        self.limit
    }

    /// The agent, for calls that need no more than itself.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Returns when the machine has ended. Any number of tasks may wait.
    pub async fn ended(&self) -> MachineEnd {
        self.ended.wait().await
    }

    /// Waits until a process has ended for which this process stands. The error is how the machine
    /// ended before that.
    pub async fn wait(&self, id: &ProcessId) -> Result<Exit, MachineEnd> {
        let error = tokio::select! {
            biased;
            exit = self.agent.stand_for(id) => match exit {
                Ok(exit) => return Ok(exit),
                Err(error) => error,
            },
            end = self.ended() => return Err(end),
        };
        Err(self.end_after(error).await)
    }

    /// Keeps files of a container's disks open. They may be none.
    pub(super) fn hold_disks(&self, id: &ContainerId, files: Vec<File>) {
        self.disks().insert(id.clone(), files);
    }

    /// Whether a container has disks.
    pub(super) fn has_disks(&self, id: &ContainerId) -> bool {
        self.disks().contains_key(id)
    }

    /// Whether a container has disks that are files of the shared directory.
    pub(super) fn has_shared_disks(&self, id: &ContainerId) -> bool {
        self.disks().get(id).is_some_and(|files| !files.is_empty())
    }

    /// Closes the files of a container's disks. False if it has no disks.
    pub(super) fn let_disks_go(&self, id: &ContainerId) -> bool {
        self.disks().remove(id).is_some()
    }

    /// Notes that a container was restored: to start it is to let it go on.
    pub(super) fn set_restored(&self, id: &ContainerId) {
        self.restored().insert(id.clone());
    }

    fn restored(&self) -> MutexGuard<'_, HashSet<ContainerId>> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<ContainerId, Vec<File>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the host has what the processes of a container wrote, which has ended with
    /// `status`, but not for ever. Without disks the host has it already: virtio-fs writes when a
    /// file is closed.
    pub async fn write_back(&self, status: u8) {
        if self.disks().is_empty() {
            return;
        }
        let limit = match status {
            Exit::KILLED => KILLED_WRITE_BACK_TIMEOUT,
            _ => WRITE_BACK_TIMEOUT,
        };
        let written = tokio::select! {
            written = self.agent.write_back(limit) => written,
            _ = self.ended() => return,
        };
        match written {
            Err(error @ AgentError::TimedOut { .. }) => tracing::warn!(
                "what the container's processes wrote last may be missing on the host: {error}"
            ),
            Err(error) => tracing::debug!("{error}"),
            Ok(()) => {}
        }
    }

    /// How the machine ended whose agent has hung up: it ends with its agent, unless the agent
    /// lies.
    async fn end_after(&self, error: AgentError) -> MachineEnd {
        match tokio::time::timeout(HANGUP_TIMEOUT, self.ended()).await {
            Ok(end) => end,
            Err(_) => MachineEnd::Failed(error.to_string()),
        }
    }

    /// Explains a failure of the guest during `stage`, with the end of its console.
    pub(super) fn failure(
        &self,
        stage: &'static str,
        after: Duration,
        how: String,
    ) -> Box<GuestFailure> {
        let engine = self.record.engine;
        GuestFailure::new(stage, after, engine, how, &self.dir.console())
    }

    /// What the end of the machine during a container's life means, with the end of the console.
    pub fn explain_end(&self, end: &MachineEnd) -> String {
        super::failure::explain_end(end, &self.dir.console())
    }

    /// What it means that the agent has not answered for `limit`, with the end of the console.
    pub(super) fn explain_silence(&self, limit: Duration) -> String {
        super::failure::explain_silence(limit, &self.dir.console())
    }

    /// Creates a container, whose init process then waits for the start, and connects its streams.
    /// The second value is the pid of that process in the guest, the third its streams.
    pub async fn create_container(
        &self,
        id: &ContainerId,
        spec: &Spec,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<(Relay, u32, Streams), SandboxError> {
        let (relay, stdio) = Relay::start(&self.dir, host)?;
        let streams = Relay::ids(&stdio);
        let spec = (Document::send(&self.dir, spec)?, devices::absent(spec));
        let created = self.agent.create_container(id, spec, stdio, self.limit);
        let stage = "the container's creation";
        let pid = self.guarded(stage, timings, created).await?;
        timings.lap("create the container");
        Ok((relay, pid, streams))
    }

    /// Lets a container's init process execute its program, or a container that was restored go on.
    pub async fn start_container(
        &self,
        id: &ContainerId,
        timings: &mut Timings,
    ) -> Result<(), SandboxError> {
        let is_restored = self.restored().contains(id);
        let started = async {
            match is_restored {
                true => self.agent.resume(id).await,
                false => self.agent.start_container(id, self.limit).await,
            }
        };
        let stage = "the container's start";
        self.guarded(stage, timings, started).await?;
        self.restored().remove(id);
        timings.lap("start the container");
        Ok(())
    }

    /// Waits until the agent answers for the first time.
    pub(super) async fn check(
        &self,
        stage: &'static str,
        timings: &Timings,
    ) -> Result<CheckResponse, SandboxError> {
        let checked = self.agent.check(self.limit);
        self.guarded(stage, timings, checked).await
    }

    /// Waits for a call to the agent that takes at most `self.limit`, but no longer than the guest
    /// lives.
    pub(super) async fn guarded<T>(
        &self,
        stage: &'static str,
        timings: &Timings,
        call: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, SandboxError> {
        let how = tokio::select! {
            biased;
            end = self.ended() => end.to_string(),
            answer = call => match answer {
                Err(error @ AgentError::Lost { .. }) => self.end_after(error).await.to_string(),
                Err(AgentError::TimedOut { limit, .. }) => format!(
                    "its agent did not answer within {} s; start_timeout_seconds in rvm's \
                     configuration allows for more",
                    limit.as_secs()
                ),
                other => return Ok(other?),
            },
        };
        Err(self.failure(stage, timings.elapsed(), how).into())
    }
}
