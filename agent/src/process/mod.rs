//! Processes that the host knows by an id: a container's init process, and those that ExecProcess
//! added.

mod reaper;

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::termios::Winsize;
use tokio::sync::watch;

pub use reaper::{Exit, Reaper};

use crate::streams::Terminal;
use crate::sys::{Doing as _, OsError, signal};

/// The highest signal number.
const LAST_SIGNAL: u32 = 64;

/// Why something could not be done to a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("process already finished")]
    Finished,
    #[error("signal {0} does not exist")]
    UnknownSignal(u32),
    #[error("process has no terminal")]
    NoTerminal,
    #[error(transparent)]
    Os(#[from] OsError),
}

/// A process, running or ended.
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    /// The process's terminal, until the process ends.
    terminal: Mutex<Option<Terminal>>,
    exit: watch::Sender<Option<Exit>>,
    /// How often another process of the host has come to stand for it.
    adoptions: AtomicU32,
}

/// Who stands for a process on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing(u32);

impl Process {
    /// A process that has just been made.
    pub fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd,
            terminal: Mutex::default(),
            exit: watch::Sender::new(None),
            adoptions: AtomicU32::new(0),
        }
    }

    /// The process's id in the guest's root pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Keeps the terminal open until the process has ended.
    pub fn set_terminal(&self, terminal: Terminal) {
        let mut kept = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_finished() {
            *kept = Some(terminal);
        }
    }

    /// Records the end, wakes the waiters, and closes the terminal.
    pub fn finish(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Who stands for it now.
    pub fn standing(&self) -> Standing {
        Standing(self.adoptions.load(Ordering::Relaxed))
    }

    /// Whether nobody has come to stand for it since.
    pub fn is_latest(&self, standing: Standing) -> bool {
        self.standing() == standing
    }

    /// Notes that another process of the host stands for it from now on.
    pub fn adopt(&self) {
        self.adoptions.fetch_add(1, Ordering::Relaxed);
    }

    pub fn has_finished(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits until the process has ended.
    pub async fn wait(&self) -> Result<Exit, ProcessError> {
        let mut exit = self.exit.subscribe();
        // The sender lives as long as this does, so the channel cannot close meanwhile.
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|_| ProcessError::Finished)?;
        exit.ok_or(ProcessError::Finished)
    }

    /// Sends a signal; 0 only asks whether the process runs.
    pub fn signal(&self, number: u32) -> Result<(), ProcessError> {
        check_signal(number)?;
        if self.has_finished() {
            return Err(ProcessError::Finished);
        }
        match signal::send(self.pidfd.as_fd(), number) {
            Err(Errno::SRCH) => Err(ProcessError::Finished),
            result => Ok(result.doing(|| format!("signal process {}", self.pid()))?),
        }
    }

    /// Sets the terminal's size in characters.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<(), ProcessError> {
        let terminal = self
            .terminal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|terminal| terminal.master.upgrade());
        let Some(terminal) = terminal else {
            return Err(match self.has_finished() {
                true => ProcessError::Finished,
                false => ProcessError::NoTerminal,
            });
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(
            rustix::termios::tcsetwinsize(terminal.as_fd(), size)
                .doing(|| "resize the terminal")?,
        )
    }
}

/// Refuses a number that no signal has.
pub fn check_signal(number: u32) -> Result<(), ProcessError> {
    if number > LAST_SIGNAL {
        Err(ProcessError::UnknownSignal(number))
    } else {
        Ok(())
    }
}
