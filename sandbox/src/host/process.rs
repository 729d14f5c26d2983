//! Processes in state files, whose pids may have been reused since.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::host::terminal;
use rvm_sys::fault_point;
use rvm_sys::readiness::Readable;

/// How long a process may take to end after SIGKILL, which it cannot while it waits for a device.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A pid and a start time, which together identify a process until the host reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// In the host's pid namespace.
    pub pid: i32,
    /// In clock ticks after boot: field 22 of /proc/pid/stat.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/pid/stat"))?;
        Ok(Self { pid, start_time })
    }

    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Opens a pidfd of the process; none if it has ended. Want of descriptors or memory is an
    /// error: a process that lives must never be taken for one that has ended.
    pub fn open(self) -> io::Result<Option<Process>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        fault_point!("process.open")?;
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            pidfd => Process(pidfd?),
        };
        // While the pidfd is open the pid is not reused, so this reads the process of the pidfd.
        match Self::of(self.pid) {
            Ok(now) if now == self && !process.wait(Duration::ZERO)? => Ok(Some(process)),
            Err(error) if !is_end(&error) => Err(error),
            _ => Ok(None),
        }
    }

    /// What the process has had the host's file systems read from and write to storage, as
    /// proc_pid_io(5) counts it. None if the process has ended.
    pub fn storage_io(self) -> Option<StorageIo> {
        // While the pidfd is open the pid is not reused.
        let _open = self.open().ok()??;
        let text = fs::read_to_string(format!("/proc/{}/io", self.pid)).ok()?;
        Some(StorageIo::parse(&text))
    }

    /// Whether the process still runs; a zombie does not, and one that cannot be looked at counts
    /// as running.
    pub fn is_alive(self) -> bool {
        !matches!(self.open(), Ok(None))
    }
}

/// Bytes that went between processes and storage. What the page cache answers is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageIo {
    /// Bytes read.
    pub read: u64,
    /// Bytes written, or to be written, without those of files that were removed before that.
    pub written: u64,
}

impl StorageIo {
    fn parse(text: &str) -> Self {
        let number = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(": "));
            let value = lines.find(|(key, _)| *key == name);
            value.map_or(0, |(_, value)| value.parse().unwrap_or(0))
        };
        Self {
            read: number("read_bytes"),
            written: number("write_bytes").saturating_sub(number("cancelled_write_bytes")),
        }
    }
}

impl std::ops::Add for StorageIo {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read: self.read.saturating_add(other.read),
            written: self.written.saturating_add(other.written),
        }
    }
}

/// Connects to a socket and sends a pidfd of the calling process, as runc does for
/// `--pidfd-socket`.
pub fn send_own_pidfd(socket: &Path) -> io::Result<()> {
    let pidfd = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    terminal::send(socket, &pidfd, b"pidfd")
}

/// Whether a file of /proc cannot be read because its process has ended.
fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Field 22 of /proc/pid/stat. The second field, the program's name, may contain spaces and `)`.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// A pidfd of a process.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Sends a signal. An ended process is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Err(Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits until the process has ended. False if it runs longer than `limit`.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&limit)) {
                Err(Errno::INTR) => {}
                other => return Ok(other? > 0),
            }
        }
    }

    /// The same without blocking the thread. Called within a tokio runtime.
    pub async fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        if self.has_ended() {
            return Ok(true);
        }
        let pidfd = Readable::new(self.as_fd())?;
        match tokio::time::timeout(limit, pidfd.read(|_| Ok(()))).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO).unwrap_or(false)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_move_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat), Some(4711));
    }

    #[test]
    fn what_is_written_and_taken_back_is_not_storage_io() {
        let text = "rchar: 9\nwchar: 9\nsyscr: 9\nsyscw: 9\nread_bytes: 4096\nwrite_bytes: 12288\n\
                    cancelled_write_bytes: 8192\n";
        let expected = StorageIo {
            read: 4096,
            written: 4096,
        };
        assert_eq!(StorageIo::parse(text), expected);
        assert!(ProcessId::own().unwrap().storage_io().is_some());
    }

    #[tokio::test]
    async fn a_process_is_alive_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        let process = id.open().unwrap().unwrap();
        assert!(!process.ends_within(Duration::ZERO).await.unwrap());
        process.signal(Signal::KILL).unwrap();
        assert!(process.ends_within(KILL_TIMEOUT).await.unwrap());
        assert!(!id.is_alive(), "a zombie is not alive");
        child.wait().unwrap();
        assert!(!id.is_alive());
        process.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_the_one() {
        let mut id = ProcessId::own().unwrap();
        id.start_time += 1;
        assert!(!id.is_alive());
    }
}
