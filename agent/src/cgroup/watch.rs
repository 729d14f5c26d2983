//! Waiting for events of a cgroup.
//!
//! cgroup.events and memory.events wake a poller with POLLPRI when they change after a read.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, SeekFrom, openat};
use rvm_sys::readiness::watch;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::CgroupError;
use crate::sys::Doing as _;

/// The event files of one group.
pub struct Watch {
    events: AsyncFd<OwnedFd>,
    /// Absent where the kernel has no memory controller.
    memory: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    pub(super) fn new(directory: BorrowedFd<'_>) -> Result<Self, CgroupError> {
        let events = open(directory, "cgroup.events").doing(|| "watch cgroup.events")?;
        Ok(Self {
            events,
            memory: open(directory, "memory.events").ok(),
        })
    }

    /// Whether there is a process in the group or in one below it.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(count(&self.events, "populated").doing(|| "read cgroup.events")? != 0)
    }

    /// Waits until no process is left.
    pub async fn empty(&self) {
        wait_for(&self.events, "populated", |value| value == 0).await;
    }

    /// Waits until every process is frozen.
    pub async fn frozen(&self) {
        wait_for(&self.events, "frozen", |value| value == 1).await;
    }

    /// How many processes the kernel has killed because the group reached its memory limit.
    pub fn oom_kills(&self) -> u64 {
        self.memory
            .as_ref()
            .and_then(|memory| count(memory, "oom_kill").ok())
            .unwrap_or(0)
    }

    /// Waits until there have been more OOM kills than `seen`.
    pub async fn oom_kills_beyond(&self, seen: u64) {
        match &self.memory {
            Some(memory) => wait_for(memory, "oom_kill", |kills| kills > seen).await,
            None => std::future::pending().await,
        }
    }
}

fn open(directory: BorrowedFd<'_>, file: &str) -> std::io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(directory, file, flags, Mode::empty())?;
    watch(fd, Interest::PRIORITY)
}

/// Waits until the counter satisfies `wanted`, or the group has been removed.
async fn wait_for(file: &AsyncFd<OwnedFd>, key: &str, wanted: impl Fn(u64) -> bool) {
    loop {
        // The read arms the notification.
        match count(file, key) {
            Ok(value) if !wanted(value) => {}
            _ => return,
        }
        match file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

fn count(file: &AsyncFd<OwnedFd>, key: &str) -> std::io::Result<u64> {
    // A few short lines; see cgroup-v2.rst.
    let mut buffer = [0; 512];
    rustix::fs::seek(file.get_ref(), SeekFrom::Start(0))?;
    let length = rustix::io::read(file.get_ref(), &mut buffer)?;
    Ok(parse(&String::from_utf8_lossy(&buffer[..length]), key))
}

fn parse(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(parse(text, "oom_kill"), 2);
        assert_eq!(parse(text, "oom"), 3);
        assert_eq!(parse(text, "max"), 0);
    }
}
