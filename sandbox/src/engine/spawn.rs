//! Starting rvm-vmm: as the first process of a pid namespace, with a control socket as its standard
//! input and its standard error in our log.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rvm_protocol::vmm::{Channel, ChannelError};
use serde::Serialize;

use super::child::{Child, Program};
use crate::cgroup::{Cgroup, CgroupError};
use crate::host::process::ProcessId;
use crate::host::untrusted_text::clean;
use rvm_sys::{fault_environment, fault_point};

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
    /// The container's control groups could not be opened or entered.
    #[error("cannot start rvm-vmm in the container's cgroup")]
    Group(#[from] CgroupError),
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
    channel: Channel,
    /// Nothing is ever sent; it closes at the end of the log.
    log: Receiver<()>,
    tail: Tail,
}

type Tail = Arc<Mutex<VecDeque<String>>>;

impl Vmm {
    /// Starts `program` in the given mode and control groups, which are else the caller's, and
    /// sends it its configuration. It is killed when the calling thread ends, so that must be one
    /// that lives as long as the machine.
    pub fn start<T: Serialize>(
        program: &Path,
        mode: &'static CStr,
        group: Option<&Cgroup>,
        config: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Self, SpawnError> {
        let failed = |source| SpawnError::Program {
            path: program.to_owned(),
            source,
        };
        fault_point!("vmm.spawn").map_err(failed)?;
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let theirs = theirs.into_fd();
        let output = File::options().write(true).open("/dev/null");
        let output = output.map_err(failed)?;
        let (input, errors) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let faults = fault_environment();
        let debug = tracing::enabled!(tracing::Level::DEBUG).then_some(c"RVM_DEBUG=1");
        let faults = faults.iter().map(AsRef::as_ref);
        let environment: Vec<&CStr> = faults.chain(debug).collect();
        let started = Program {
            path: program,
            arguments: &[mode],
            environment: &environment,
            streams: [theirs.as_fd(), output.as_fd(), errors.as_fd()],
        };
        let directory = group.map(Cgroup::directory).transpose()?.flatten();
        let child = Child::start(&started, directory.as_ref().map(AsFd::as_fd)).map_err(failed)?;
        fault_point!("vmm.spawned").map_err(failed)?;
        // These close with the child.
        drop((theirs, errors));
        if let Some(group) = group.filter(|_| directory.is_none()) {
            // Before it does any work: what a process has used is never moved with it.
            group.add(child.pid())?;
        }
        let tail = Tail::default();
        let (logging, log) = mpsc::channel();
        let source = mode.to_str().unwrap_or_default();
        let work = {
            let tail = Arc::clone(&tail);
            move || {
                log_lines(source, File::from(input), &tail);
                drop(logging);
            }
        };
        let builder = thread::Builder::new().name("log".to_owned());
        let thread = builder.stack_size(64 * 1024).spawn(work);
        thread.map_err(failed)?;
        fault_point!("vmm.configure").map_err(failed)?;
        channel.send(config, fds)?;
        Ok(Self {
            child,
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
        self.child.pidfd()
    }

    /// The process, for whoever must find it later.
    pub fn id(&self) -> io::Result<ProcessId> {
        ProcessId::of(self.child.pid())
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
        self.child.kill().and_then(|()| self.child.wait())
    }
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
    use crate::cgroup::Driver;
    use std::collections::BTreeSet;

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Vmm::start(Path::new("/nonexistent/vmm"), c"machine", None, &1, &[])
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/vmm"));
    }

    #[test]
    fn a_process_is_in_its_groups_and_ends_when_it_is_dropped() {
        let path = format!("/rvm-unit-spawn-{}", std::process::id());
        let group = Cgroup::find(Driver::Cgroupfs, Some(Path::new(&path)), "unused").unwrap();
        group.create(&[], None).unwrap();
        let vmm = Vmm::start(Path::new("/bin/sleep"), c"1000", Some(&group), &1, &[]).unwrap();
        let pid = vmm.id().unwrap().pid;
        assert_eq!(group.processes().unwrap(), BTreeSet::from([pid]));
        drop(vmm);
        assert!(group.processes().unwrap().is_empty());
        group.remove().unwrap();
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
