//! Measures how long the stages of a start take.

use std::time::Instant;

pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the last lap.
    pub(super) fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.0, now));
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }
}
