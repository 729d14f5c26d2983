//! A process of a container, as containerd sees it: its number, its streams, its end.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::Process as Program;
use protobuf::well_known_types::timestamp::Timestamp;
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::monitor::EXIT_MACHINE_GONE;
use tokio::sync::watch;

use crate::stdio::Uris;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What a shell would report.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

impl Ended {
    /// It has ended just now with this status. The guest's clock is not the host's.
    pub fn now(status: u8) -> Self {
        Self {
            status: status.into(),
            at: SystemTime::now(),
        }
    }

    /// The machine has ended, and every process in it.
    pub fn with_machine() -> Self {
        Self::now(EXIT_MACHINE_GONE)
    }

    /// When, as containerd has it.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from(self.at)
    }
}

#[derive(Default)]
struct Stdin {
    is_to_end: bool,
    keeper: Option<OwnedFd>,
}

/// A process: a container's first, or one that was added to it.
pub struct Process {
    /// Empty for a container's first.
    pub id: String,
    /// Its streams.
    pub uris: Uris,
    /// What is to be executed, of an added one.
    pub program: Option<Program>,
    /// Held while something is told of the process, so that its end is told last. Taken before any
    /// other lock.
    pub telling: tokio::sync::Mutex<()>,
    /// A first process's number on the host.
    anchor: Option<PidAnchor>,
    /// An added process's number in the guest.
    pid: AtomicU32,
    stdin: Mutex<Stdin>,
    ended: watch::Sender<Option<Ended>>,
}

impl Process {
    /// A container's first process.
    pub fn first(uris: Uris, anchor: PidAnchor) -> Self {
        Self {
            anchor: Some(anchor),
            ..Self::new(String::new(), uris)
        }
    }

    /// One that is to be added.
    pub fn added(id: &str, uris: Uris, program: Program) -> Self {
        Self {
            program: Some(program),
            ..Self::new(id.to_owned(), uris)
        }
    }

    fn new(id: String, uris: Uris) -> Self {
        Self {
            id,
            uris,
            program: None,
            anchor: None,
            telling: tokio::sync::Mutex::default(),
            pid: AtomicU32::new(0),
            stdin: Mutex::default(),
            ended: watch::channel(None).0,
        }
    }

    /// Its number, or 0 if it was added and not started.
    pub fn pid(&self) -> u32 {
        let first = self.anchor.as_ref();
        first.map_or_else(
            || self.pid.load(Ordering::Relaxed),
            |first| first.pid().unsigned_abs(),
        )
    }

    /// Sets the number that an added process has got.
    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Holds what keeps standard input open, unless it is to end already.
    pub fn keep_stdin(&self, keeper: Option<OwnedFd>) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if !stdin.is_to_end {
            stdin.keeper = keeper;
        }
    }

    /// Lets standard input end with its last writer. containerd may ask for it before the process
    /// is known to run.
    pub fn end_stdin(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        *stdin = Stdin {
            is_to_end: true,
            keeper: None,
        };
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// It has ended.
    pub fn set_ended(&self, ended: Ended) {
        self.end_stdin();
        if let Some(Err(error)) = self.anchor.as_ref().map(PidAnchor::leave_rootfs) {
            tracing::warn!("the container's files may stay mounted: {error}");
        }
        self.ended.send_replace(Some(ended));
    }

    /// Returns when it has ended.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(ended)) => *ended,
            // The sender lives as long as this.
            _ => Ended::with_machine(),
        }
    }
}
