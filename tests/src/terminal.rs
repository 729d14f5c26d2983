//! Terminals of the host, as a shell or an engine would have them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// The controlling end of a terminal.
pub struct Terminal(File);

impl Terminal {
    /// Sets the size.
    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.0, size).unwrap();
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until the text has come.
    pub fn expect(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while !seen.contains(text) {
            let length = self
                .0
                .read(&mut buffer)
                .unwrap_or_else(|e| panic!("{e} after {seen:?}"));
            seen += &String::from_utf8_lossy(&buffer[..length]);
        }
        seen
    }
}

/// The other end, which programs are at.
pub struct Line(OwnedFd);

impl Line {
    /// What the terminal does with what is typed.
    pub fn modes(&self) -> LocalModes {
        tcgetattr(&self.0).unwrap().local_modes
    }

    /// Puts a command at the terminal, as the leader of its session.
    pub fn attach(&self, command: &mut Command) {
        let stdio = || Stdio::from(self.0.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        #[expect(unsafe_code, reason = "pre_exec")]
        // SAFETY: two system calls.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            })
        };
    }
}

/// A new terminal.
pub fn open(rows: u16, cols: u16) -> (Terminal, Line) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let line = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
    let terminal = Terminal(master.into());
    terminal.resize(rows, cols);
    (terminal, Line(line))
}

/// A socket to which a runtime sends a descriptor.
pub struct Reception {
    path: PathBuf,
    listener: UnixListener,
}

impl Reception {
    /// Listens at a path.
    pub fn new(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener }
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal.
    pub fn terminal(self) -> Terminal {
        let (fd, name) = self.receive();
        assert!(name.starts_with(b"/dev/pts/"));
        Terminal(fd.into())
    }

    /// Waits for the descriptor, and what is said with it.
    pub fn receive(self) -> (OwnedFd, Vec<u8>) {
        let (stream, _) = self.listener.accept().unwrap();
        std::fs::remove_file(&self.path).unwrap();
        receive(&stream)
    }
}

fn receive(stream: &UnixStream) -> (OwnedFd, Vec<u8>) {
    let mut name = [0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [std::io::IoSliceMut::new(&mut name)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream.as_fd(), &mut slices, &mut ancillary, flags).unwrap();
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (fd.unwrap(), name[..received.bytes].to_vec())
}
