//! Log lines on standard error, which rvm copies to its own log.

use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
pub use rvm_sys::error_chain::chain as error_chain;

/// Writes `LEVEL message` lines to standard error, each in one write so that threads do not mix.
struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // virtiofsd logs every failed file operation of the guest at these levels.
        let ours = metadata.target().starts_with("rvm_vmm");
        ours || metadata.level() <= log::Level::Error && log::max_level() > LevelFilter::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}\n", record.level(), record.args()).replace('\0', " ");
            // There is nowhere else to report that standard error is closed.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts logging at level info, or at level debug if `debug` is set.
pub fn start(debug: bool) {
    log::set_max_level(if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
    // Fails only when a logger is set already, as in tests.
    let _ = log::set_logger(&StderrLogger);
}

/// The most lines that one [`RateLimited`] logs in [`PERIOD`]. A guest that misbehaves on purpose
/// would otherwise fill the host's disk with warnings.
const BURST: u32 = 5;

/// See [`BURST`].
const PERIOD: Duration = Duration::from_secs(60);

/// Limits the warnings that a guest can cause in one place of the code.
#[derive(Default)]
pub struct RateLimited(Mutex<Option<Window>>);

struct Window {
    start: Instant,
    lines: u32,
}

impl RateLimited {
    /// Logs a warning unless the limit is reached; `message` is not called then.
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
    fn a_burst_is_cut_off_and_admitted_again_after_the_period() {
        let limit = RateLimited::default();
        let start = Instant::now();
        let admitted = (0..100).filter(|_| limit.admit(start)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limit.admit(start + PERIOD));
    }
}
