//! The virtual CPUs of a machine: threads that run the guest, created at boot or hotplugged later.
//!
//! The MP table declares all CPUs from the start. A CPU that is not created yet does not answer
//! when the guest wakes it, so the host creates it before the agent brings it online.

mod kick;
mod run_state;
mod vcpu;

use std::io;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;

use crate::arch::x86_64::registers::RegisterError;
use crate::jail::filter::ThreadKind;
use crate::kvm::{KvmError, SavedVcpu, Vm};
use crate::logging::error_chain;
use crate::threads;

pub use run_state::RunState;

use kick::VcpuThread;
use vcpu::Vcpu;

/// A vCPU could not be created.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("cannot start a vCPU's thread")]
    Thread(#[source] io::Error),
    #[error("{wanted} vCPUs; the machine was started with room for {max}")]
    TooMany { wanted: u8, max: u8 },
}

/// A machine's vCPUs.
pub struct Vcpus {
    state: Arc<RunState>,
    threads: Vec<VcpuThread>,
    max: u8,
}

impl Vcpus {
    /// Runs the vCPUs that a machine starts with, in the order of their ids. There may be `max`
    /// later. All must have been created before one runs: if one cannot be, the guest must not
    /// start.
    pub fn start(fds: Vec<VcpuFd>, state: Arc<RunState>, max: u8) -> Result<Self, VcpuError> {
        let threads = (0..).zip(fds).map(|(id, fd)| {
            let vcpu = Vcpu::new(id, fd, Arc::clone(&state));
            spawn(vcpu).map_err(VcpuError::Thread)
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            state,
            max,
        })
    }

    /// The state that the vCPUs share.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Creates vCPUs until there are `count`. None is ever removed: an offline CPU takes no time.
    pub fn grow(&mut self, vm: &Vm, count: u8) -> Result<(), VcpuError> {
        if count > self.max {
            return Err(VcpuError::TooMany {
                wanted: count,
                max: self.max,
            });
        }
        for id in self.threads.len()..count.into() {
            // Below `max`, which is a u8.
            let id = id as u8;
            let fd = vm.create_vcpu(id, self.max)?;
            let vcpu = Vcpu::new(id, fd, Arc::clone(&self.state));
            self.threads.push(spawn(vcpu).map_err(VcpuError::Thread)?);
        }
        Ok(())
    }

    /// Pauses all vCPUs, and returns when they have stopped.
    pub fn pause(&self) {
        self.state.pause(&self.threads);
    }

    /// How many there may be.
    pub fn max(&self) -> u8 {
        self.max
    }

    /// The states of the vCPUs, which are paused, with these model-specific registers. None if one
    /// does not answer.
    pub fn save(&self, msrs: &[u32]) -> Option<Result<Vec<SavedVcpu>, RegisterError>> {
        // At most `max`.
        self.state.save(self.threads.len() as u8, msrs)
    }

    /// Stops all vCPUs for good, between two instructions, and takes them from their threads.
    /// `None` if one does not stop.
    pub fn collect(&self) -> Option<Vec<(u8, VcpuFd)>> {
        self.state.collect(&self.threads)
    }

    /// Lets the vCPUs run again after a [`Self::pause`].
    pub fn resume(&self) {
        self.state.resume();
    }
}

fn spawn(vcpu: Vcpu) -> io::Result<VcpuThread> {
    let (report, started) = std::sync::mpsc::sync_channel(1);
    let name = format!("vcpu{}", vcpu.id());
    let run = move || {
        let adopted = vcpu.adopt_thread();
        let filtered = ThreadKind::Vcpu.apply();
        let ready = adopted.and_then(|thread| {
            filtered
                .map(|()| thread)
                .map_err(|e| io::Error::other(error_chain(&e)))
        });
        let may_run = ready.is_ok();
        // `spawn` waits for this message, so the receiver exists.
        let _ = report.send(ready);
        if may_run {
            vcpu.run();
        }
    };
    threads::spawn(name, run)?;
    started
        .recv()
        .map_err(|_| io::Error::other("the thread has ended"))?
}
