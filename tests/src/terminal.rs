//! Terminals of the host, as a shell or an engine has them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// The longest wait for output.
const LIMIT: Timespec = Timespec {
    tv_sec: 120,
    tv_nsec: 0,
};

/// The controlling end of a terminal.
pub struct Terminal {
    master: File,
    /// Output that no `expect` has taken.
    seen: String,
}

impl Terminal {
    fn new(master: OwnedFd) -> Self {
        Self {
            master: master.into(),
            seen: String::new(),
        }
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    pub fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until the text has come; returns the output up to its end.
    pub fn expect(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                return self.seen.drain(..at + text.len()).collect();
            }
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&LIMIT)).unwrap();
            assert!(ready > 0, "{text:?} never came after {:?}", self.seen);
            match self.master.read(&mut buffer) {
                Ok(length @ 1..) => self.seen += &String::from_utf8_lossy(&buffer[..length]),
                end => panic!("{end:?} before {text:?}, after {:?}", self.seen),
            }
        }
    }

    /// Reads to the end, so that no writer blocks.
    pub fn drain(mut self) {
        let mut buffer = [0; 4096];
        while let Ok(1..) = self.master.read(&mut buffer) {}
    }
}

/// The end that programs use.
pub struct Line(OwnedFd);

impl Line {
    /// The terminal's input modes.
    pub fn modes(&self) -> LocalModes {
        tcgetattr(&self.0).unwrap().local_modes
    }

    /// Makes a command the session leader at the terminal.
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

/// Runs a command without a controlling terminal, whatever the tests have.
pub fn leave(command: &mut Command) {
    #[expect(unsafe_code, reason = "pre_exec")]
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?))
    };
}

pub fn open(rows: u16, cols: u16) -> (Terminal, Line) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let line = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
    let terminal = Terminal::new(master);
    terminal.resize(rows, cols);
    (terminal, Line(line))
}

/// A socket to which a runtime sends a descriptor.
pub struct Reception {
    path: PathBuf,
    listener: UnixListener,
}

impl Reception {
    pub fn new(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn terminal(self) -> Terminal {
        let (fd, name) = self.receive();
        assert!(name.starts_with(b"/dev/pts/"));
        Terminal::new(fd)
    }

    /// Waits for the descriptor, and the data that comes with it.
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
