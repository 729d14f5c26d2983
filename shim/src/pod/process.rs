//! A process of a container, as containerd sees it: its pid, its streams, its exit.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Process as Program;
use rvm_protocol::{ContainerId, ExecId, ProcessId};
use rvm_sandbox::anchor::PidAnchor;
use tokio::sync::watch;

use super::exit::Exit;
use crate::stdio::Uris;
use crate::stdio::logger::Logger;

#[derive(Default)]
struct Stdin {
    is_closed: bool,
    writer: Option<OwnedFd>,
}

/// What only one of the two kinds of processes has.
enum Kind {
    /// The init process. Its pid is that of a process on the host that stands for it.
    Init(PidAnchor),
    /// An added process. Its pid is the guest's, and 0 until it is started.
    Exec {
        program: Box<Program>,
        pid: AtomicU32,
    },
}

/// A process of a container, which may not have started yet and may have ended.
pub struct Process {
    pub id: ProcessId,
    pub uris: Uris,
    /// Held while an event of the process is published, so that its exit comes last. It is taken
    /// before any other lock.
    pub publishing: tokio::sync::Mutex<()>,
    kind: Kind,
    stdin: Mutex<Stdin>,
    /// The program that reads the output. It may go on until the process is deleted.
    logger: Mutex<Option<Logger>>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// The init process of a container.
    pub fn init(container: ContainerId, uris: Uris, anchor: PidAnchor) -> Self {
        Self::new(ProcessId::init(container), uris, Kind::Init(anchor))
    }

    /// A process that is to run `program` in a container.
    pub fn exec(container: ContainerId, id: ExecId, uris: Uris, program: Program) -> Self {
        let id = ProcessId {
            container,
            exec: Some(id),
        };
        let kind = Kind::Exec {
            program: Box::new(program),
            pid: AtomicU32::new(0),
        };
        Self::new(id, uris, kind)
    }

    fn new(id: ProcessId, uris: Uris, kind: Kind) -> Self {
        Self {
            id,
            uris,
            publishing: tokio::sync::Mutex::default(),
            kind,
            stdin: Mutex::default(),
            logger: Mutex::default(),
            exit: watch::channel(None).0,
        }
    }

    /// Whether it is the init process of its container.
    pub fn is_init(&self) -> bool {
        self.id.exec.is_none()
    }

    /// What an added process is to run.
    pub fn program(&self) -> Option<&Program> {
        match &self.kind {
            Kind::Init(_) => None,
            Kind::Exec { program, .. } => Some(program),
        }
    }

    /// The init process's pid on the host, or an added process's in the guest, which is 0 until the
    /// process is started.
    pub fn pid(&self) -> u32 {
        match &self.kind {
            Kind::Init(anchor) => anchor.pid().unsigned_abs(),
            Kind::Exec { pid, .. } => pid.load(Ordering::Relaxed),
        }
    }

    /// Waits for the next signal that somebody sends to the init process's pid on the host; `None`
    /// once that process has ended.
    pub async fn next_signal(&self) -> Option<i32> {
        match &self.kind {
            Kind::Init(anchor) => anchor.signal().await,
            Kind::Exec { .. } => None,
        }
    }

    /// Sets the pid of an added process that has started.
    pub fn set_guest_pid(&self, new: u32) {
        if let Kind::Exec { pid, .. } = &self.kind {
            pid.store(new, Ordering::Relaxed);
        }
    }

    /// Keeps standard input open, unless containerd has closed it already: it may do so before the
    /// process is known to run.
    pub fn hold_stdin(&self, writer: Option<OwnedFd>) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if !stdin.is_closed {
            stdin.writer = writer;
        }
    }

    /// Keeps the program that reads the output until [`Self::end_logger`].
    pub fn hold_logger(&self, logger: Option<Logger>) {
        *self.logger() = logger;
    }

    /// Has the program that reads the output exit, if it has not yet; returns when it has.
    pub async fn end_logger(&self) {
        let logger = self.logger().take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }

    fn logger(&self) -> MutexGuard<'_, Option<Logger>> {
        self.logger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets standard input end with its last client.
    pub fn close_stdin(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        *stdin = Stdin {
            is_closed: true,
            writer: None,
        };
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Records the exit and wakes those who wait for it.
    pub fn set_exit(&self, exit: Exit) {
        self.close_stdin();
        if let Kind::Init(anchor) = &self.kind
            && let Err(error) = anchor.leave_rootfs()
        {
            tracing::warn!("the process that has the container's pid may stay: {error}");
        }
        self.exit.send_replace(Some(exit));
    }

    /// Waits for the exit.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => *exit,
            // Never: the sender lives as long as `self`.
            _ => Exit::with_machine(),
        }
    }
}
