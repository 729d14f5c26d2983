//! Starting rvm-vmm: as the first process of a pid namespace, with a control socket as its standard
//! input and its standard error in our log.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use rvm_protocol::vmm::{Channel, ChannelError};
use rvm_sys::namespaces::unshare;
use serde::Serialize;

use crate::host::process::ProcessId;
use crate::host::untrusted_text::clean;

/// rvm-vmm could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program is missing, or a process, socket or thread could not be made.
    #[error("cannot start {} (vmm in rvm's configuration)", path.display())]
    Program {
        /// The program's path, as configured.
        path: PathBuf,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// The configuration could not be sent.
    #[error("cannot configure rvm-vmm")]
    Configure(#[from] ChannelError),
}

/// The longest line that is logged, in bytes; a process that was taken over could send a longer
/// one.
const MAX_LINE: usize = 2000;

/// The most lines of one process that are logged in [`PERIOD`], and with `--debug`. One that was
/// taken over could otherwise fill the host's disk, and bury what the user is told; QEMU has a few
/// in all its life.
const MAX_LINES: u32 = 20;
const MAX_DEBUG_LINES: u32 = 200;

/// The period of [`MAX_LINES`].
const PERIOD: Duration = Duration::from_secs(60);

/// How long the log of a process that has ended may take to end. A process that was taken over can
/// send its end of the log to the other end of a guest's stream, where it stays open.
const LOG_TIMEOUT: Duration = Duration::from_millis(500);

/// How many of a process's last lines are kept to explain its end.
const TAIL_LINES: usize = 5;

/// A running rvm-vmm, or what it became.
pub struct Vmm {
    child: Child,
    pidfd: OwnedFd,
    channel: Channel,
    /// Nothing is ever sent; it closes at the end of the log.
    log: Receiver<()>,
    tail: Tail,
}

type Tail = Arc<Mutex<VecDeque<String>>>;

impl Vmm {
    /// Starts `program` in the given mode and sends it its configuration. It is killed when the
    /// calling thread ends, so that must be one that lives as long as the machine.
    pub fn start<T: Serialize>(
        program: &Path,
        mode: &'static str,
        config: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, SpawnError> {
        let failed = |source| SpawnError::Program {
            path: program.to_owned(),
            source,
        };
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .arg(mode)
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_clear();
        if tracing::enabled!(tracing::Level::DEBUG) {
            command.env("RVM_DEBUG", "1");
        }
        let mut child = spawn_first_in_pid_namespace(&mut command).map_err(failed)?;
        // The command holds the other end of the control socket, which must close with the child.
        drop(command);
        let tail = Tail::default();
        let (logging, log) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            let tail = Arc::clone(&tail);
            let work = move || {
                log_lines(mode, stderr, &tail);
                drop(logging);
            };
            let builder = thread::Builder::new().name("log".to_owned());
            let thread = builder.stack_size(64 * 1024).spawn(work);
            thread.map_err(failed)?;
        }
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        channel.send(config, fds)?;
        Ok(Self {
            child,
            pidfd,
            channel,
            log,
            tail,
        })
    }

    /// The control socket.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The process, for whoever must find it later.
    pub fn id(&self) -> io::Result<ProcessId> {
        ProcessId::of(self.child.id().cast_signed())
    }

    /// How the process ended, if it has.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The last lines that the process logged. It must have ended: this waits for the end of its
    /// log, for at most [`LOG_TIMEOUT`].
    pub fn last_lines(&self) -> Vec<String> {
        let _ = self.log.recv_timeout(LOG_TIMEOUT);
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }

    /// Ends the process, and with it all of its pid namespace, and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        // Fails only when the process was waited for already.
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(|_| ())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Spawns a child that is process 1 of a pid namespace of its own. Killing it kills all others.
fn spawn_first_in_pid_namespace(command: &mut Command) -> io::Result<Child> {
    let ours = rustix::fs::open(
        "/proc/thread-self/ns/pid",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    unshare(UnshareFlags::NEWPID)?;
    let child = command.spawn();
    // The namespace is for one child only.
    move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
    child
}

/// Logs what a process says, line by line, until it closes its end.
fn log_lines(source: &'static str, mut input: impl Read, tail: &Mutex<VecDeque<String>>) {
    let mut log = LineLog::new(source, tail);
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(length @ 1..) = input.read(&mut chunk) {
        for &byte in &chunk[..length] {
            if byte != b'\n' && line.len() < MAX_LINE {
                line.push(byte);
            } else {
                log.line(&line, Instant::now());
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        log.line(&line, Instant::now());
    }
    log.tell_left_out();
}

/// A process's lines on their way into our log.
struct LineLog<'a> {
    source: &'static str,
    tail: &'a Mutex<VecDeque<String>>,
    /// The most lines in [`PERIOD`].
    limit: u32,
    /// When the current period began.
    since: Instant,
    logged: u32,
    left_out: u64,
}

impl<'a> LineLog<'a> {
    fn new(source: &'static str, tail: &'a Mutex<VecDeque<String>>) -> Self {
        Self {
            source,
            tail,
            limit: match tracing::enabled!(tracing::Level::DEBUG) {
                true => MAX_DEBUG_LINES,
                false => MAX_LINES,
            },
            since: Instant::now(),
            logged: 0,
            left_out: 0,
        }
    }

    fn line(&mut self, line: &[u8], now: Instant) {
        let line = clean(String::from_utf8_lossy(line).trim_end());
        if self.admit(now) {
            log_line(self.source, &line);
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }

    fn admit(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= PERIOD {
            self.tell_left_out();
            self.since = now;
            self.logged = 0;
        }
        let admitted = self.logged < self.limit;
        match admitted {
            true => self.logged += 1,
            false => self.left_out += 1,
        }
        admitted
    }

    fn tell_left_out(&mut self) {
        if self.left_out > 0 {
            tracing::warn!(
                "{}: {} more lines were left out",
                self.source,
                self.left_out
            );
            self.left_out = 0;
        }
    }
}

fn log_line(source: &str, line: &str) {
    match line.split_once(' ') {
        Some(("ERROR", message)) => tracing::error!("{source}: {message}"),
        Some(("WARN", message)) => tracing::warn!("{source}: {message}"),
        Some(("INFO", message)) => tracing::info!("{source}: {message}"),
        Some(("DEBUG", message)) => tracing::debug!("{source}: {message}"),
        _ => tracing::warn!("{source}: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_process_one_and_the_next_child_is_not() {
        let mut show = Command::new("sh");
        show.args(["-c", "echo $$"]).stdout(Stdio::piped());
        let output = spawn_first_in_pid_namespace(&mut show)
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(output.stdout, b"1\n");
        assert_ne!(show.output().unwrap().stdout, b"1\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Vmm::start(Path::new("/nonexistent/vmm"), "machine", &1, &[])
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/vmm"));
    }

    #[test]
    fn the_last_lines_are_kept_and_long_ones_cut() {
        let tail = Mutex::default();
        let text = (0..9)
            .map(|n| format!("WARN line {n}\n"))
            .collect::<String>()
            + &"x".repeat(5000);
        log_lines("test", text.as_bytes(), &tail);
        let tail = tail.into_inner().unwrap();
        assert_eq!(tail.len(), TAIL_LINES);
        assert!(tail.iter().all(|line| line.len() <= MAX_LINE));
        assert!(tail[0].starts_with("WARN line"));
    }

    #[test]
    fn a_flood_is_cut_off_counted_and_heard_again_after_the_period() {
        let tail = Mutex::default();
        let mut log = LineLog::new("test", &tail);
        let start = Instant::now();
        let heard = (0..1000).filter(|_| log.admit(start)).count();
        assert_eq!(heard, MAX_LINES as usize);
        assert_eq!(log.left_out, 1000 - u64::from(MAX_LINES));
        assert!(log.admit(start + PERIOD));
        assert_eq!(log.left_out, 0);
    }
}
