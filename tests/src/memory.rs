//! The most memory that processes have used.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cgroups;

/// How often the processes are looked at. The kernel keeps the peak of each, so only what happens
/// in the last moment of a process can be missed.
const INTERVAL: Duration = Duration::from_millis(3);

/// A thread that looks at processes.
pub struct Memory {
    peak: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    /// Watches the processes in a cgroup that run a program of `installation`.
    pub(crate) fn watch(cgroup: PathBuf, installation: &Path) -> Self {
        let programs = fs::canonicalize(installation).unwrap();
        let (peak, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (highest, over) = (Arc::clone(&peak), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for pid in cgroups::members(&cgroup) {
                    let peak = peak_of(pid, &programs).unwrap_or(0);
                    highest.fetch_max(peak, Ordering::Relaxed);
                }
                thread::sleep(INTERVAL);
            }
        });
        Self {
            peak,
            is_over,
            thread: Some(thread),
        }
    }

    /// The most that one process has had resident so far, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// VmHWM of a process, see proc_pid_status(5). None if it has ended, or runs another program.
fn peak_of(pid: i32, programs: &Path) -> Option<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if !program.starts_with(programs) {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
