//! Terminals of the host: the user's own, and the ones that are made for an engine.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// A call on a terminal.
    #[error("cannot {action}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The engine's socket.
    #[error("cannot send the terminal to the console socket {}", path.display())]
    ConsoleSocket {
        /// Which socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There is no terminal to begin with.
    #[error(
        "config.json: process.terminal is set, but standard input is not a terminal; \
         use --console-socket, or set it to false"
    )]
    NotATerminal,
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> TerminalError {
    move |source| TerminalError::Call {
        action,
        source: source.into(),
    }
}

/// A terminal's size in characters; 0 where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl WindowSize {
    /// The size that a terminal has now.
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

/// A terminal whose input and output pass as they are. It becomes what it was when this is dropped.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Sets a terminal to raw mode.
    pub fn new(terminal: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        let before = tcgetattr(terminal).map_err(|_| TerminalError::NotATerminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).map_err(failed("set the terminal up"))?;
        let terminal = terminal
            .try_clone_to_owned()
            .map_err(failed("dup the terminal"))?;
        Ok(Self { terminal, before })
    }

    /// The terminal's size.
    pub fn size(&self) -> WindowSize {
        WindowSize::of(self.terminal.as_fd())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Gone with its other end, perhaps.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Puts /dev/null in the place of this process's standard streams. An engine that reads what its
/// call of the runtime says reads until nobody can write any more, and a container at a terminal of
/// its own has no other use for them.
pub fn leave_standard_streams() -> Result<(), TerminalError> {
    let action = "leave the standard streams";
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(failed(action))?;
    rustix::stdio::dup2_stdin(&null).map_err(failed(action))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed(action))?;
    rustix::stdio::dup2_stderr(&null).map_err(failed(action))
}

/// Makes a terminal, sends its controlling end to an engine's socket, and makes its other end the
/// calling process's own, so that the process hears of changes of size. The process must lead a
/// session without a terminal.
pub fn for_engine(console_socket: &Path) -> Result<OwnedFd, TerminalError> {
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

/// Sends a descriptor, and its name as the message, as runc does.
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
    fn raw_mode_lasts_as_long_as_its_value() {
        let (_master, slave) = pty();
        let echoes = || {
            tcgetattr(&slave)
                .unwrap()
                .local_modes
                .contains(LocalModes::ECHO)
        };
        assert!(echoes());
        let raw = Raw::new(slave.as_fd()).unwrap();
        assert!(!echoes());
        drop(raw);
        assert!(echoes());
    }

    #[test]
    fn what_is_no_terminal_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            Raw::new(file.as_fd()),
            Err(TerminalError::NotATerminal)
        ));
        assert_eq!(WindowSize::of(file.as_fd()), WindowSize::default());
    }

    #[test]
    fn a_missing_console_socket_is_named() {
        let (master, _slave) = pty();
        let error = send(Path::new("/nonexistent/console"), &master, b"name").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
