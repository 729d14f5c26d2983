//! What a monitor does for the program that asked for it, and how it hears that this program has
//! gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::{MonitorError, process_failed};
use crate::container::monitor_process::Starter;
use crate::guest::descriptors::ExtraFd;
use crate::guest::stdio::HostStdio;
use crate::host::process;
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal, StandardStream};

const ALL_STREAMS: [StandardStream; 3] = [
    StandardStream::Input,
    StandardStream::Output,
    StandardStream::Error,
];

/// What the program that asked for a container or a process wants of its monitor.
pub struct Caller<'a> {
    /// A Unix socket for the controlling end of the terminal; without one, the terminal is that of
    /// the standard streams.
    pub console_socket: Option<PathBuf>,
    /// A Unix socket for a pidfd of the monitor.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors beyond the standard streams.
    pub extra: Vec<ExtraFd>,
    /// Who waits.
    pub mode: Mode<'a>,
}

/// Who waits for a monitor.
pub enum Mode<'a> {
    /// A program that goes away once the monitor has reported that the container is created, or
    /// that the process runs. Another starts the container.
    Detached(&'a Starter),
    /// The user: the container is started at once.
    Foreground,
}

impl Caller<'_> {
    /// The host's ends of the process's streams. The second value keeps the terminal in raw mode.
    pub(super) fn take_streams(
        &mut self,
        terminal: bool,
    ) -> Result<(HostStdio, Option<RawTerminal>), MonitorError> {
        let (host, raw) = match terminal {
            true => self.terminal()?,
            false => (standard_streams()?, None),
        };
        Ok((host.with(std::mem::take(&mut self.extra)), raw))
    }

    fn terminal(&self) -> Result<(HostStdio, Option<RawTerminal>), MonitorError> {
        let (input, output, raw) = match &self.console_socket {
            Some(socket) => {
                let slave = terminal::open_for_engine(socket)?;
                terminal::detach_standard_streams(&ALL_STREAMS)?;
                let raw = RawTerminal::new(slave.as_fd())?;
                (duplicate(slave.as_fd())?, slave, raw)
            }
            None => users_terminal()?,
        };
        let host = HostStdio::Terminal {
            input,
            output,
            size: raw.size(),
            plain_line_feeds: self.console_socket.is_none(),
        };
        Ok((host, Some(raw)))
    }

    /// Sends a pidfd of this process, if one is wanted.
    pub(super) fn send_pidfd(&self) -> Result<(), MonitorError> {
        let Some(socket) = &self.pidfd_socket else {
            return Ok(());
        };
        process::send_own_pidfd(socket).map_err(process_failed("send a pidfd to its socket"))
    }

    /// Reports that the container is created, or that the process runs.
    pub(super) fn report_ready(&self) -> Result<(), MonitorError> {
        let reported = match self.mode {
            Mode::Detached(starter) => starter.report_ready(),
            Mode::Foreground => Ok(()),
        };
        reported.map_err(process_failed("report that the container is created"))
    }

    /// Returns when the program that waits has gone.
    pub(super) async fn gone(&self) {
        match self.mode {
            Mode::Detached(starter) => starter.gone().await,
            Mode::Foreground => std::future::pending().await,
        }
    }
}

/// The standard streams, which this process gives away: what the process in the guest closes, the
/// caller sees closed. This process's own messages go to standard error until the other process has
/// closed that, see `GuestProcess::pass_signals_until`.
fn standard_streams() -> Result<HostStdio, MonitorError> {
    let streams = HostStdio::Streams {
        stdin: duplicate(io::stdin().as_fd())?,
        stdout: duplicate(io::stdout().as_fd())?,
        stderr: duplicate(io::stderr().as_fd())?,
    };
    terminal::detach_standard_streams(&[StandardStream::Input, StandardStream::Output])?;
    Ok(streams)
}

/// The user's input and output, and the user's terminal, which may be neither: runc, too, reads and
/// writes the standard streams when they are redirected.
fn users_terminal() -> Result<(OwnedFd, OwnedFd, RawTerminal), MonitorError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let terminal = terminal::find_users([stderr.as_fd(), stdout.as_fd(), stdin.as_fd()])?;
    Ok((
        duplicate(stdin.as_fd())?,
        duplicate(stdout.as_fd())?,
        RawTerminal::of_user(terminal.as_fd())?,
    ))
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, MonitorError> {
    fd.try_clone_to_owned()
        .map_err(process_failed("dup the standard streams"))
}

/// Returns when a signal asks this process to end. Others mean nothing to a process of the guest
/// that does not run yet, or any more.
pub(super) async fn interrupted(signals: &Signals) -> i32 {
    loop {
        match signals.next().await {
            Ok(signal @ (libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)) => {
                return signal;
            }
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}
