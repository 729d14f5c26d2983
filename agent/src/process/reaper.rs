//! Reaping the processes that end: the agent's own children, and every orphan of the guest.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rvm_sys::readiness::watch;
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::sys::{Doing as _, OsError, signal};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What a shell would report: 0 to 255, 128 + n after signal n.
    pub status: u32,
    /// Nanoseconds since the epoch, on the guest's clock.
    pub at_ns: u64,
    /// Of an init process: whether the kernel has killed a process of the container because its
    /// memory limit was reached. The reaper does not know.
    pub oom_killed: bool,
}

type Waiters = HashMap<Pid, oneshot::Sender<Exit>>;

/// Reaps processes and sends their exits to the tasks that wait for them. A copy is another handle.
#[derive(Clone, Default)]
pub struct Reaper {
    waiters: Arc<Mutex<Waiters>>,
}

impl Reaper {
    /// Waits for children for ever. `signals` is from [`signal::child_exits`].
    pub async fn run(self, signals: OwnedFd) -> Result<(), OsError> {
        let signals = watch(signals, Interest::READABLE).doing(|| "watch for SIGCHLD")?;
        loop {
            // Children may have ended before the descriptor was watched.
            self.reap();
            let mut ready = signals.readable().await.doing(|| "wait for SIGCHLD")?;
            signal::drain(signals.as_fd());
            ready.clear_ready();
        }
    }

    /// Registers for the exit of a child. The caller has just made the child and has awaited
    /// nothing since: otherwise the child could have been reaped already.
    pub fn expect(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.waiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, sender);
        receiver
    }

    fn reap(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.report(pid, status),
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => {}
                Err(errno) => return log::error!("wait for children: {errno}"),
            }
        }
    }

    fn report(&self, pid: Pid, status: WaitStatus) {
        let exit = Exit {
            status: shell_status(status),
            at_ns: now_ns(),
            oom_killed: false,
        };
        let waiter = self
            .waiters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pid);
        if let Some(waiter) = waiter {
            // Fails if the waiter is gone.
            let _ = waiter.send(exit);
        }
    }
}

fn shell_status(status: WaitStatus) -> u32 {
    let code = status.exit_status().unwrap_or(0);
    status
        .terminating_signal()
        .map_or(code, |signal| 128 + signal) as u32
}

fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
