//! Terminals of the host: the user's own, and those that rvm opens for an engine.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

/// A terminal could not be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum TerminalError {
    #[error("cannot {action}")]
    Call {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot send the terminal to the console socket {}", path.display())]
    ConsoleSocket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "config.json: process.terminal is set, but no standard stream is a terminal, and the \
         caller has no controlling terminal; use --console-socket, or set it to false"
    )]
    NotATerminal,
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError::Call {
        action,
        source: source.into(),
    }
}

/// A terminal's size in characters; 0 if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Number of lines.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
}

impl WindowSize {
    /// A terminal's current size; unknown for other descriptors.
    pub fn of(terminal: BorrowedFd<'_>) -> Self {
        tcgetwinsize(terminal).map_or_else(
            |_| Self::default(),
            |size| Self {
                rows: size.ws_row,
                cols: size.ws_col,
            },
        )
    }
}

/// A terminal in raw mode. Dropping it restores the earlier mode.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// A terminal that passes everything on in both directions. Fails if the descriptor is not a
    /// terminal.
    pub fn new(terminal: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        Self::with_output_modes(terminal, OutputModes::empty())
    }

    /// The same for the terminal of a user, which goes on to turn line feeds into line ends, as
    /// with runc: the process's output may go elsewhere, where a line ends with a line feed alone.
    pub fn of_user(terminal: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        Self::with_output_modes(terminal, OutputModes::OPOST)
    }

    fn with_output_modes(
        terminal: BorrowedFd<'_>,
        kept: OutputModes,
    ) -> Result<Self, TerminalError> {
        let before = tcgetattr(terminal).map_err(|_| TerminalError::NotATerminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= kept;
        tcsetattr(terminal, OptionalActions::Now, &raw).map_err(failed("set the terminal up"))?;
        let terminal = terminal
            .try_clone_to_owned()
            .map_err(failed("dup the terminal"))?;
        Ok(Self { terminal, before })
    }

    /// The terminal's current size.
    pub fn size(&self) -> WindowSize {
        WindowSize::of(self.terminal.as_fd())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Fails if the other end is closed.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// The terminal of the user who calls: the first of `streams` that is one, else the controlling
/// terminal. A user who redirects streams still types at the latter.
pub fn find_users(streams: [BorrowedFd<'_>; 3]) -> Result<OwnedFd, TerminalError> {
    find(streams, Path::new("/dev/tty"))
}

fn find(streams: [BorrowedFd<'_>; 3], controlling: &Path) -> Result<OwnedFd, TerminalError> {
    if let Some(terminal) = streams.into_iter().find(|&stream| isatty(stream)) {
        let copy = terminal.try_clone_to_owned();
        return copy.map_err(failed("dup the terminal"));
    }
    // It cannot be opened without a controlling terminal.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(controlling, flags, Mode::empty()).map_err(|_| TerminalError::NotATerminal)
}

/// A standard stream of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardStream {
    /// Standard input.
    Input,
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Replaces standard streams of this process by /dev/null. An engine or a shell reads the runtime's
/// output until the last writer closes it, and copies of the streams stay with whoever relays them.
pub fn detach_standard_streams(streams: &[StandardStream]) -> Result<(), TerminalError> {
    let action = "leave the standard streams";
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(failed(action))?;
    for stream in streams {
        let replaced = match stream {
            StandardStream::Input => rustix::stdio::dup2_stdin(&null),
            StandardStream::Output => rustix::stdio::dup2_stdout(&null),
            StandardStream::Error => rustix::stdio::dup2_stderr(&null),
        };
        replaced.map_err(failed(action))?;
    }
    Ok(())
}

/// Opens a pty, sends its master to an engine's console socket, and makes its slave the calling
/// process's controlling terminal, so that the process gets SIGWINCH. The process must lead a
/// session without a terminal. Returns the slave.
pub fn open_for_engine(console_socket: &Path) -> Result<OwnedFd, TerminalError> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(failed("make a terminal"))?;
    grantpt(&master).map_err(failed("make a terminal"))?;
    unlockpt(&master).map_err(failed("make a terminal"))?;
    let name = ptsname(&master, Vec::new()).map_err(failed("name a terminal"))?;
    let slave = rustix::fs::open(
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open a terminal"))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed("take a terminal"))?;
    send(console_socket, &master, name.to_bytes()).map_err(|source| {
        TerminalError::ConsoleSocket {
            path: console_socket.to_owned(),
            source,
        }
    })?;
    Ok(slave)
}

/// Sends a descriptor over a Unix socket with its name as the payload, as runc does.
pub(crate) fn send(socket: &Path, fd: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let name = std::ffi::OsStr::from_bytes(name);
    sendmsg(
        &stream,
        &[IoSlice::new(name.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::LocalModes;

    fn pty() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        (master, slave)
    }

    #[test]
    fn dropping_raw_mode_restores_the_terminal() {
        let (_master, slave) = pty();
        let echoes = || {
            tcgetattr(&slave)
                .unwrap()
                .local_modes
                .contains(LocalModes::ECHO)
        };
        assert!(echoes());
        let raw = RawTerminal::new(slave.as_fd()).unwrap();
        assert!(!echoes());
        drop(raw);
        assert!(echoes());
    }

    #[test]
    fn a_descriptor_that_is_not_a_terminal_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            RawTerminal::new(file.as_fd()),
            Err(TerminalError::NotATerminal)
        ));
        assert_eq!(WindowSize::of(file.as_fd()), WindowSize::default());
    }

    #[test]
    fn the_users_terminal_is_any_standard_stream_or_the_controlling_one() {
        let (_master, slave) = pty();
        let null = std::fs::File::open("/dev/null").unwrap();
        let (null, terminal) = (null.as_fd(), slave.as_fd());
        for streams in [
            [terminal, null, null],
            [null, terminal, null],
            [null, null, terminal],
        ] {
            let found = find(streams, Path::new("/nonexistent/tty")).unwrap();
            RawTerminal::new(found.as_fd()).unwrap();
        }
        let name = rustix::termios::ttyname(terminal, Vec::new()).unwrap();
        let controlling = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let found = find([null; 3], controlling).unwrap();
        RawTerminal::new(found.as_fd()).unwrap();
        assert!(matches!(
            find([null; 3], Path::new("/nonexistent/tty")),
            Err(TerminalError::NotATerminal)
        ));
    }

    #[test]
    fn a_missing_console_socket_is_named() {
        let (master, _slave) = pty();
        let error = send(Path::new("/nonexistent/console"), &master, b"name").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
