//! The state that the vCPUs of a machine share: the bus, and whether they run.
//!
//! ```text
//!             start             pause                    anything that ends the machine
//!   waiting ─────────> running ───────> paused    running ──────────────────────────────> ended
//!                         ^               │              │
//!                         └─── resume ────┘              └──collect──> collected
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use rvm_protocol::vmm::StopReason;
use vmm_sys_util::eventfd::EventFd;

use super::kick::VcpuThread;
use super::vcpu::failed;
use crate::bus::Bus;

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
    /// The vCPUs are to leave their threads, and those that have.
    collected: Option<Vec<(u8, VcpuFd)>>,
    stop: Option<StopReason>,
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

    /// Returns when the calling vCPU may run.
    pub(super) fn wait_while_paused(&self) {
        let mut state = self.lock();
        if !state.paused {
            return;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.paused {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
