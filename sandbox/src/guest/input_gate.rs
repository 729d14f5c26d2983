//! A gate before the input of processes in the guest, which a checkpoint closes: what this process
//! has read from the host must be in the guest or in the checkpoint when the machine ends. What it
//! has not read waits for whoever reads next.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long input may take that is on its way: the guest may not read it.
const PATIENCE: Duration = Duration::from_secs(2);

/// That of all streams of this process.
pub(super) static GATE: InputGate = InputGate {
    state: Mutex::new(State {
        closers: 0,
        inside: 0,
    }),
    changed: Condvar::new(),
};

#[derive(Debug)]
pub(super) struct InputGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    closers: usize,
    /// How many pieces of input have been read from the host, and are not written to the guest.
    inside: usize,
}

/// Input that is on its way.
pub(super) struct Inside<'a>(&'a InputGate);

/// A closed gate. It opens when this is dropped, unless it is to stay closed.
#[derive(Debug)]
pub struct Closed(&'static InputGate);

impl InputGate {
    /// Waits while the gate is closed.
    pub(super) fn enter(&self) -> Inside<'_> {
        let open = self
            .changed
            .wait_while(self.lock(), |state| state.closers > 0);
        open.unwrap_or_else(PoisonError::into_inner).inside += 1;
        Inside(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the gate of all input that this process copies, and waits until none is on its way. None
/// if the guest does not take what is.
pub fn close() -> Option<Closed> {
    GATE.lock().closers += 1;
    let closed = Closed(&GATE);
    let is_busy = |state: &mut State| state.inside > 0;
    let waited = GATE
        .changed
        .wait_timeout_while(GATE.lock(), PATIENCE, is_busy);
    let is_clear = waited.unwrap_or_else(PoisonError::into_inner).0.inside == 0;
    is_clear.then_some(closed)
}

impl Closed {
    /// Leaves the gate closed for as long as this process lives: the guest has ended, and who is
    /// let in would read what the next reader of the input is to have.
    pub fn for_good(self) {
        std::mem::forget(self);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.lock().closers -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nothing_in_and_waits_for_what_is() {
        let inside = GATE.enter();
        let closing = std::thread::spawn(close);
        while GATE.lock().closers == 0 {
            std::thread::yield_now();
        }
        let entering = std::thread::spawn(|| drop(GATE.enter()));
        drop(inside);
        let closed = closing.join().unwrap().unwrap();
        assert!(!entering.is_finished());
        drop(closed);
        entering.join().unwrap();
        let _stuck = GATE.enter();
        assert!(close().is_none(), "what is on its way stays there");
        assert_eq!(GATE.lock().closers, 0, "the gate opens again");
    }
}
