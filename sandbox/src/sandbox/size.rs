//! A sandbox's size while its machine runs: it follows the limits of its container.

use std::time::Duration;

use tokio::sync::Mutex;

use super::{Life, Sandbox};
use crate::engine::{EngineError, Machine, MachineEnd, check_host_memory};
use crate::guest::agent::{Agent, AgentError};
use crate::sizing::{Bounds, Change, Running, Size, SizeError};

/// How long a guest may take to plug memory. Each 128 MiB take it some ten milliseconds, and on a
/// software CPU twenty times that.
const GROW_LIMIT: Duration = Duration::from_secs(60);

/// How long it is waited for a guest that gives memory back. It goes on after that.
const SHRINK_LIMIT: Duration = Duration::from_secs(5);

/// What has become of the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// It is what it was to be.
    AsAsked,
    /// The guest has not given back all that it was to.
    Kept,
}

/// The size could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The machine belongs to another process.
    #[error("the machine belongs to another process")]
    NotOwned,
    /// It can or may not have that size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The machine, or the host's memory.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The guest.
    #[error("the guest does not go along")]
    Guest(#[from] AgentError),
    /// The guest is slow, or was taken over.
    #[error("the guest has not taken the memory within {} s", GROW_LIMIT.as_secs())]
    NotTaken,
    /// The machine is not there any more.
    #[error("{0}")]
    Ended(MachineEnd),
}

/// The size, and how it can change.
pub(super) struct LiveSize {
    running: Running,
    bounds: Bounds,
    /// What the machine was started with, in MiB: beyond that it has a memory device.
    boot_mib: u64,
    /// The guest has come to have the memory that it was last asked to have.
    is_settled: bool,
}

impl LiveSize {
    /// Of a machine that has just been started.
    pub(super) fn new(running: Running, bounds: Bounds) -> Mutex<Self> {
        Mutex::new(Self {
            boot_mib: running.now.memory_mib,
            running,
            bounds,
            is_settled: true,
        })
    }

    async fn change(
        &mut self,
        change: &Change,
        machine: &dyn Machine,
        agent: &Agent,
    ) -> Result<Memory, ResizeError> {
        let before = self.running.now;
        let wanted = self.running.size_for(change, &self.bounds)?;
        if wanted == before && self.is_settled {
            return Ok(Memory::AsAsked);
        }
        check_host_memory(wanted.memory_mib.saturating_sub(before.memory_mib))?;
        let done = self.become_size(wanted, machine, agent).await;
        if done.is_err() {
            // As it was, as far as that goes: why it is needed is what is reported.
            let _ = self.become_size(before, machine, agent).await;
        }
        done
    }

    async fn become_size(
        &mut self,
        wanted: Size,
        machine: &dyn Machine,
        agent: &Agent,
    ) -> Result<Memory, ResizeError> {
        tracing::debug!("{} vCPUs and {} MiB", wanted.vcpus, wanted.memory_mib);
        let grows = wanted.memory_mib > self.running.now.memory_mib;
        self.is_settled = false;
        machine.resize(wanted).await?;
        self.running.now = wanted;
        let has_device = wanted.memory_mib > self.boot_mib;
        agent.resize_guest(wanted.vcpus, has_device).await?;
        let limit = if grows { GROW_LIMIT } else { SHRINK_LIMIT };
        let reached = tokio::time::timeout(limit, machine.resized(wanted)).await;
        self.is_settled = reached == Ok(true);
        match self.is_settled {
            true => Ok(Memory::AsAsked),
            false if grows => Err(ResizeError::NotTaken),
            false => {
                tracing::info!("the guest has not given back all the memory that it was to");
                Ok(Memory::Kept)
            }
        }
    }
}

impl Sandbox {
    /// Makes the machine as large as changed limits ask for.
    pub async fn resize(&self, change: &Change) -> Result<Memory, ResizeError> {
        let Life::Owned { machine, size, .. } = &self.life else {
            return Err(ResizeError::NotOwned);
        };
        let mut size = size.lock().await;
        tokio::select! {
            biased;
            // Answers of the machine arrive only while somebody waits for its end.
            end = self.ended() => Err(ResizeError::Ended(end.clone())),
            done = size.change(change, machine.as_ref(), &self.agent) => done,
        }
    }
}
