//! The stages of a start and their durations, for `--timings`.

use std::fmt;
use std::time::{Duration, Instant};

/// A stopwatch with a lap for every stage.
#[derive(Clone, Debug)]
pub struct Timings {
    start: Instant,
    last: Instant,
    stages: Vec<Stage>,
}

#[derive(Clone, Debug)]
struct Stage {
    name: &'static str,
    depth: usize,
    time: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            stages: Vec::new(),
        }
    }
}

impl Timings {
    /// Ends a stage and begins the next.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        let time = now.duration_since(std::mem::replace(&mut self.last, now));
        tracing::debug!(stage = name, micros = time.as_micros(), "stage ended");
        self.stages.push(Stage {
            name,
            depth: 0,
            time,
        });
    }

    /// Adds a part of the last stage, which another process has measured.
    pub fn part(&mut self, name: &'static str, nanoseconds: u64) {
        self.stages.push(Stage {
            name,
            depth: 1,
            time: Duration::from_nanos(nanoseconds),
        });
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        for Stage { name, depth, time } in &self.stages {
            let name = format!("{:indent$}{name}", "", indent = depth * 2);
            writeln!(f, "{name:<36}{:>10.2} ms", milliseconds(*time))?;
        }
        let total = self.last.duration_since(self.start);
        writeln!(f, "{:<36}{:>10.2} ms", "total", milliseconds(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_line_and_parts_are_not_counted_twice() {
        let mut timings = Timings::default();
        timings.lap("first");
        timings.part("of first", 5_000_000_000);
        timings.lap("second");
        let table = timings.to_string();
        assert_eq!(table.lines().count(), 4);
        assert!(table.contains("  of first") && table.contains("5000.00 ms"));
        let total = table.lines().last().unwrap();
        assert!(
            total.starts_with("total") && !total.contains("5000"),
            "{total}"
        );
    }
}
