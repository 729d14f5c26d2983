//! The size of a running machine, which follows the limits of its containers.

use std::time::Duration;

use super::Sandbox;
use crate::engine::{EngineError, Machine, MachineEnd, check_host_memory};
use crate::guest::agent::{Agent, AgentError};
use crate::sizing::{Bounds, Change, Running, Size, SizeError};

/// How long a guest may take to plug memory: some ten milliseconds for each 128 MiB, and twenty
/// times that on a software CPU.
const GROW_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the owner waits for a guest to give memory back. The guest goes on after that.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a change of size did to the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryResult {
    /// The guest has what was asked for.
    AsAsked,
    /// The guest kept some of what it was asked to give back.
    Kept,
}

/// The machine's size could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The machine cannot have that size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The engine failed, or the host has too little memory.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The agent failed to bring CPUs or memory online.
    #[error("the guest does not go along")]
    Guest(#[from] AgentError),
    /// The guest is too slow, or hostile.
    #[error("the guest has not taken the memory within {} s", GROW_TIMEOUT.as_secs())]
    NotTaken,
    /// The machine ended meanwhile.
    #[error("{0}")]
    Ended(MachineEnd),
}

/// The size now, and its bounds.
pub(super) struct LiveSize {
    running: Running,
    bounds: Bounds,
    /// The guest has the memory that the last change asked for.
    is_settled: bool,
}

impl LiveSize {
    /// Of a machine that has just been started.
    pub(super) fn new(running: Running, bounds: Bounds) -> Self {
        Self {
            running,
            bounds,
            is_settled: true,
        }
    }

    /// The size now.
    pub(super) fn now(&self) -> Size {
        self.running.now
    }

    async fn change(
        &mut self,
        change: &Change,
        machine: &Machine,
        agent: &Agent,
    ) -> Result<MemoryResult, ResizeError> {
        let before = self.running.now;
        let wanted = self.running.size_for(change, &self.bounds)?;
        if wanted == before && self.is_settled {
            return Ok(MemoryResult::AsAsked);
        }
        check_host_memory(wanted.memory_mib.saturating_sub(before.memory_mib))?;
        let done = self.resize_to(wanted, machine, agent).await;
        if done.is_err() {
            // Back to what it was, as far as possible: the first error is the one to report.
            let _ = self.resize_to(before, machine, agent).await;
        }
        done
    }

    async fn resize_to(
        &mut self,
        wanted: Size,
        machine: &Machine,
        agent: &Agent,
    ) -> Result<MemoryResult, ResizeError> {
        tracing::debug!("{} vCPUs and {} MiB", wanted.vcpus, wanted.memory_mib);
        let grows = wanted.memory_mib > self.running.now.memory_mib;
        self.is_settled = false;
        machine.resize(wanted).await?;
        self.running.now = wanted;
        let has_device = wanted.memory_mib > self.running.start.memory_mib;
        agent.resize_guest(wanted.vcpus, has_device).await?;
        let limit = if grows { GROW_TIMEOUT } else { SHRINK_TIMEOUT };
        let reached = tokio::time::timeout(limit, machine.resized(wanted)).await;
        self.is_settled = reached == Ok(true);
        match self.is_settled {
            true => Ok(MemoryResult::AsAsked),
            false if grows => Err(ResizeError::NotTaken),
            false => {
                tracing::info!(
                    "the guest has kept some of the memory that it was asked to give back"
                );
                Ok(MemoryResult::Kept)
            }
        }
    }
}

impl Sandbox {
    /// Resizes the machine to what changed limits ask for.
    pub async fn resize(&self, change: &Change) -> Result<MemoryResult, ResizeError> {
        let mut size = self.size().lock().await;
        tokio::select! {
            biased;
            end = self.guest().ended() => Err(ResizeError::Ended(end)),
            done = size.change(change, self.machine(), self.guest().agent()) => done,
        }
    }
}
