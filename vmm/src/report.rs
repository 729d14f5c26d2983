//! How the VMM speaks: lines on its standard error, which the host's side of rvm logs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

/// Writes `LEVEL message` lines to standard error, each in one write so that threads do not mix.
struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // virtiofsd reports every failed file operation of the guest at these levels.
        let ours = metadata.target().starts_with("rvm_vmm");
        ours || metadata.level() <= log::Level::Error && log::max_level() > LevelFilter::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}\n", record.level(), record.args()).replace('\0', " ");
            // Nobody is left to tell if standard error is gone.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts logging; `debug` adds what is of interest only to whoever works on the VMM.
pub fn start(debug: bool) {
    log::set_max_level(if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
    // Refused only when a logger is set already, as in tests.
    let _ = log::set_logger(&Lines);
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a String cannot fail.
        let _ = write!(line, ": {error}");
        source = error.source();
    }
    line
}

/// The most lines a guest can cause in [`PERIOD`] from one place. A guest that misbehaves on
/// purpose would otherwise fill the host's disk with our complaints.
const BURST: u32 = 5;

/// See [`BURST`].
const PERIOD: Duration = Duration::from_secs(60);

/// A place that logs what a guest does.
#[derive(Default)]
pub struct RateLimited(Mutex<Option<Window>>);

struct Window {
    start: Instant,
    lines: u32,
}

impl RateLimited {
    /// Logs a warning, unless this place has said enough for now.
    pub fn warn(&self, message: impl FnOnce() -> String) {
        if self.admit(Instant::now()) {
            log::warn!("{}", message());
        }
    }

    fn admit(&self, now: Instant) -> bool {
        let Ok(mut window) = self.0.lock() else {
            return false;
        };
        match window.as_mut() {
            Some(open) if now.duration_since(open.start) < PERIOD => {
                open.lines += 1;
                open.lines <= BURST
            }
            _ => {
                *window = Some(Window {
                    start: now,
                    lines: 1,
                });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_off_and_heard_again_after_the_period() {
        let place = RateLimited::default();
        let start = Instant::now();
        let heard = (0..100).filter(|_| place.admit(start)).count();
        assert_eq!(heard, BURST as usize);
        assert!(place.admit(start + PERIOD));
    }

    #[test]
    fn an_error_is_told_with_its_sources() {
        let error = std::io::Error::other(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "inner");
    }
}
