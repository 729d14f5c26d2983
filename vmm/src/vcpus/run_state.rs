//! The state that the vCPUs of a machine share: the bus, and whether they run.
//!
//! ```text
//!             start             pause                    anything that ends the machine
//!   waiting ─────────> running ───────> paused    running ──────────────────────────────> ended
//!                         ^            save              │
//!                         └─── resume ────┘              └──collect──> collected
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use rvm_protocol::vmm::StopReason;
use vmm_sys_util::eventfd::EventFd;

use super::kick::VcpuThread;
use super::vcpu::failed;
use crate::arch::x86_64::registers::RegisterError;
use crate::bus::Bus;
use crate::kvm::SavedVcpu;

pub struct RunState {
    bus: Bus,
    state: Mutex<State>,
    /// Notified when anything of `state` changes that a thread waits for.
    changed: Condvar,
    /// Readable once the machine has ended.
    ended: EventFd,
}

struct State {
    paused: bool,
    /// The number of vCPUs that have stopped because `paused` is set.
    parked: usize,
    /// The vCPUs that stand still are to save their states.
    save: Option<Save>,
    /// The vCPUs are to leave their threads, and those that have.
    collected: Option<Vec<(u8, VcpuFd)>>,
    stop: Option<StopReason>,
}

/// vCPUs that save their states.
struct Save {
    /// The model-specific registers that are saved.
    msrs: Arc<[u32]>,
    /// Those that have not begun, by their ids.
    waiting: BTreeSet<u8>,
    saved: Vec<Result<SavedVcpu, RegisterError>>,
}

/// What a vCPU is to do.
pub(super) enum Order {
    Run,
    /// Save its state, with these model-specific registers, and wait again.
    Save(Arc<[u32]>),
}

/// How long vCPUs may take to leave their threads: each has one exit to finish.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(10);

impl RunState {
    /// The state of vCPUs whose I/O goes to `bus`.
    pub fn new(bus: Bus) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bus,
            state: Mutex::new(State {
                paused: false,
                parked: 0,
                save: None,
                collected: None,
                stop: None,
            }),
            changed: Condvar::new(),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        }))
    }

    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// An eventfd that is readable once the machine has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Why the machine has ended. None while it runs.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.lock().stop.clone()
    }

    /// Ends the machine. The first reason is kept.
    pub(super) fn end(&self, reason: StopReason) {
        self.lock().stop.get_or_insert(reason);
        // A write fails only when the counter is full, and then the eventfd is readable already.
        let _ = self.ended.write(1);
    }

    /// Ends the machine because a part of it has failed.
    pub fn fail(&self, message: String) {
        self.end(failed(message));
    }

    /// Pauses the vCPUs on `threads` and returns when they have stopped.
    pub(super) fn pause(&self, threads: &[VcpuThread]) {
        let mut state = self.lock();
        state.paused = true;
        for thread in threads {
            thread.kick();
        }
        while state.parked < threads.len() && state.stop.is_none() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// The states of the vCPUs on `count` threads, which are paused, in the order of their ids.
    /// Fails if one does not come in time.
    pub(super) fn save(
        &self,
        count: u8,
        msrs: &[u32],
    ) -> Option<Result<Vec<SavedVcpu>, RegisterError>> {
        let mut state = self.lock();
        state.save = Some(Save {
            msrs: msrs.into(),
            waiting: (0..count).collect(),
            saved: Vec::new(),
        });
        self.changed.notify_all();
        let is_incomplete = |state: &mut State| {
            let saved = state.save.as_ref().map_or(0, |save| save.saved.len());
            saved < usize::from(count) && state.stop.is_none()
        };
        let waited = self
            .changed
            .wait_timeout_while(state, COLLECT_TIMEOUT, is_incomplete);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let saved = state.save.take()?.saved;
        if saved.len() != usize::from(count) {
            return None;
        }
        let saved: Result<Vec<_>, _> = saved.into_iter().collect();
        Some(saved.map(|mut vcpus| {
            vcpus.sort_by_key(|vcpu| vcpu.id);
            vcpus
        }))
    }

    /// Notes the state of a vCPU.
    pub(super) fn put_saved(&self, saved: Result<SavedVcpu, RegisterError>) {
        if let Some(save) = &mut self.lock().save {
            save.saved.push(saved);
        }
        self.changed.notify_all();
    }

    /// Takes the vCPUs from these threads, which end. `None` if one does not come in time.
    pub(super) fn collect(&self, threads: &[VcpuThread]) -> Option<Vec<(u8, VcpuFd)>> {
        let mut state = self.lock();
        state.collected = Some(Vec::new());
        for thread in threads {
            thread.kick();
        }
        let is_incomplete = |state: &mut State| {
            let collected = state.collected.as_ref().map_or(0, Vec::len);
            collected < threads.len() && state.stop.is_none()
        };
        let waited = self
            .changed
            .wait_timeout_while(state, COLLECT_TIMEOUT, is_incomplete);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut vcpus = state.collected.take()?;
        vcpus.sort_by_key(|(id, _)| *id);
        (vcpus.len() == threads.len()).then_some(vcpus)
    }

    /// Whether the calling vCPU is to leave its thread.
    pub(super) fn is_collecting(&self) -> bool {
        self.lock().collected.is_some()
    }

    /// Hands over a vCPU that has left its thread.
    pub(super) fn hand_over(&self, id: u8, vcpu: VcpuFd) {
        if let Some(collected) = &mut self.lock().collected {
            collected.push((id, vcpu));
        }
        self.changed.notify_all();
    }

    /// Returns when the vCPU with this id, which calls it, has something to do.
    pub(super) fn wait_while_paused(&self, id: u8) -> Order {
        let mut state = self.lock();
        if !state.paused {
            return Order::Run;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.paused {
            if let Some(save) = &mut state.save
                && save.waiting.remove(&id)
            {
                let msrs = Arc::clone(&save.msrs);
                state.parked -= 1;
                return Order::Save(msrs);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        Order::Run
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
