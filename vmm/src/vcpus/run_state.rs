//! The state that the vCPUs of a machine share: the bus, and whether they run.
//!
//! ```text
//!             start             pause                    anything that ends the machine
//!   waiting ─────────> running ───────> paused    running ──────────────────────────────> ended
//!                         ^               │
//!                         └─── resume ────┘
//! ```

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rvm_protocol::vmm::StopReason;
use vmm_sys_util::eventfd::EventFd;

use super::kick::VcpuThread;
use super::vcpu::failed;
use crate::bus::Bus;

pub struct RunState {
    bus: Bus,
    state: Mutex<State>,
    /// Notified when `paused` or `parked` changes.
    changed: Condvar,
    /// Readable once the machine has ended.
    ended: EventFd,
}

struct State {
    paused: bool,
    /// The number of vCPUs that have stopped because `paused` is set.
    parked: usize,
    stop: Option<StopReason>,
}

impl RunState {
    /// The state of vCPUs whose I/O goes to `bus`.
    pub fn new(bus: Bus) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bus,
            state: Mutex::new(State {
                paused: false,
                parked: 0,
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
