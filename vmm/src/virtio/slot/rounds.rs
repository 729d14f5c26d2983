//! Rounds of a queue whose answers a vCPU waits for: in each of them the device processes what is
//! in the queue. One thread has all of them, one after the other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a vCPU waits for answers. A request that needs the host's disk takes longer, and the
/// vCPU has other work meanwhile.
const PATIENCE: Duration = Duration::from_micros(200);

/// Counts them, for those who wait.
#[derive(Default)]
pub struct Rounds {
    state: Mutex<RoundsState>,
    ended: Condvar,
}

#[derive(Default)]
struct RoundsState {
    /// The number of the last round that has begun.
    begun: u32,
    /// That of the last one that has ended.
    ended: u32,
    is_awaited: bool,
}

impl RoundsState {
    fn has_ended(&self, number: u32) -> bool {
        self.ended.wrapping_sub(number).cast_signed() >= 0
    }
}

impl Rounds {
    /// The round that begins next. One that has begun may have missed what is in the queue now, and
    /// its answers can be there before its end: who received one must not take that end for an
    /// answer to the next request.
    pub fn next(&self) -> Round<'_> {
        Round {
            rounds: self,
            number: self.lock().begun.wrapping_add(1),
        }
    }

    pub fn begin(&self) {
        let mut state = self.lock();
        state.begun = state.begun.wrapping_add(1);
    }

    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = state.begun;
        if std::mem::take(&mut state.is_awaited) {
            drop(state);
            self.ended.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, RoundsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A round that had not begun when this was made.
#[must_use]
pub struct Round<'a> {
    rounds: &'a Rounds,
    number: u32,
}

impl Round<'_> {
    /// Waits for its end, but not for long.
    pub fn wait(self) {
        let must_wait = |state: &mut RoundsState| {
            let has_ended = state.has_ended(self.number);
            state.is_awaited |= !has_ended;
            !has_ended
        };
        let (state, ended) = (self.rounds.lock(), &self.rounds.ended);
        drop(ended.wait_timeout_while(state, PATIENCE, must_wait));
    }

    #[cfg(test)]
    pub fn has_ended(&self) -> bool {
        self.rounds.lock().has_ended(self.number)
    }
}
