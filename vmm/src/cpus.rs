//! The virtual CPUs of a machine: those that it starts with, and those that it is given later.
//!
//! The guest is told of all from the start. One that is not made yet does not answer when the guest
//! wakes it, so the host asks for it here before the agent does there.

use std::io;
use std::sync::Arc;
use std::thread;

use vm_memory::GuestAddress;

use crate::jail::filter::ThreadKind;
use crate::kvm::vcpu::{Shared, Thread, Vcpu};
use crate::kvm::{KvmError, Vm};
use crate::machine::STACK;

/// CPUs could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A thread.
    #[error("cannot start a vCPU's thread")]
    Thread(#[source] io::Error),
    /// The guest knows of no more.
    #[error("{wanted} vCPUs; the machine was started with room for {max}")]
    TooMany {
        /// How many there were to be.
        wanted: u8,
        /// How many there can be.
        max: u8,
    },
}

/// A machine's CPUs.
pub struct Cpus {
    /// What they share.
    pub shared: Arc<Shared>,
    threads: Vec<Thread>,
    max: u8,
}

impl Cpus {
    /// Makes `count` CPUs of at most `max` and lets them run: the first from the kernel's entry
    /// point, the others when the guest wakes them.
    pub fn start(
        vm: &Vm,
        shared: Arc<Shared>,
        (count, max): (u8, u8),
        entry: GuestAddress,
    ) -> Result<Self, CpuError> {
        // All of them before one runs, which it does not if another cannot be made.
        let fds = (0..count).map(|id| match id {
            0 => vm.create_boot_vcpu(max, entry),
            id => vm.create_vcpu(id, max),
        });
        let fds: Vec<_> = fds.collect::<Result<_, _>>()?;
        let threads = (0..).zip(fds).map(|(id, fd)| {
            let vcpu = Vcpu::new(id.into(), fd, Arc::clone(&shared));
            spawn(id, vcpu).map_err(CpuError::Thread)
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            shared,
            max,
        })
    }

    /// Makes CPUs until there are `count`. None is ever taken away: one that is offline costs no
    /// time.
    pub fn grow(&mut self, vm: &Vm, count: u8) -> Result<(), CpuError> {
        if count > self.max {
            return Err(CpuError::TooMany {
                wanted: count,
                max: self.max,
            });
        }
        for id in self.threads.len()..count.into() {
            // Below `max`, which is one.
            let id = id as u8;
            let fd = vm.create_vcpu(id, self.max)?;
            let vcpu = Vcpu::new(id.into(), fd, Arc::clone(&self.shared));
            self.threads
                .push(spawn(id, vcpu).map_err(CpuError::Thread)?);
        }
        Ok(())
    }

    /// Stops all, and returns when they have stopped.
    pub fn pause(&self) {
        self.shared.pause(&self.threads);
    }
}

fn spawn(id: u8, mut vcpu: Vcpu) -> io::Result<Thread> {
    let (report, started) = std::sync::mpsc::sync_channel(1);
    let run = move || {
        let adopted = vcpu.adopt_thread();
        let filtered = ThreadKind::Vcpu.apply();
        let ready = adopted.and_then(|thread| {
            filtered
                .map(|()| thread)
                .map_err(|e| io::Error::other(crate::report::chain(&e)))
        });
        let go = ready.is_ok();
        // The receiver waits for exactly this.
        let _ = report.send(ready);
        if go {
            vcpu.run();
        }
    };
    thread::Builder::new()
        .name(format!("vcpu{id}"))
        .stack_size(STACK)
        .spawn(run)?;
    started
        .recv()
        .map_err(|_| io::Error::other("a vCPU's thread is gone"))?
}
