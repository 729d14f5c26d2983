//! A process's standard streams and extra descriptors: the ends for the process, and relays for the
//! agent's ends.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rvm_protocol::agent::extra_descriptor::Kind;
use rvm_protocol::agent::{ExtraDescriptor, Stdio};

use super::{Claim, Endpoint, StreamError, StreamHub, relay};
use crate::init::plan::{TerminalPlan, fd};
use crate::sys::Doing as _;

/// How many descriptors a process can have beyond its standard streams.
pub const MAX_EXTRA: usize = (fd::CONTROL - fd::EXTRA) as usize;

/// Which connections carry a process's standard streams; 0 is none.
#[derive(Clone, Debug, Default)]
pub struct StreamIds {
    /// Whether the process gets a terminal, carried by `stdin` both ways.
    pub terminal: bool,
    pub stdin: u64,
    pub stdout: u64,
    pub stderr: u64,
    /// The terminal's size in characters, 0 where unset.
    pub rows: u16,
    pub cols: u16,
    /// See the protocol's `Stdio`.
    pub plain_line_feeds: bool,
    /// Descriptors from 3 on.
    pub extra: Vec<ExtraDescriptor>,
}

impl StreamIds {
    /// The process's terminal, if it gets one. Its size is the request's, else that of
    /// `configured`, else 0.
    pub fn terminal_plan(&self, configured: Option<TerminalPlan>) -> Option<TerminalPlan> {
        let configured = configured.unwrap_or_default();
        let (rows, cols) = match (self.rows, self.cols) {
            (0, 0) => (configured.rows, configured.cols),
            requested => requested,
        };
        self.terminal.then_some(TerminalPlan {
            rows,
            cols,
            plain_line_feeds: self.plain_line_feeds,
        })
    }
}

impl From<&Stdio> for StreamIds {
    fn from(stdio: &Stdio) -> Self {
        Self {
            terminal: stdio.terminal,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            rows: u16::try_from(stdio.rows).unwrap_or(u16::MAX),
            cols: u16::try_from(stdio.cols).unwrap_or(u16::MAX),
            plain_line_feeds: stdio.plain_line_feeds,
            extra: stdio.extra.clone(),
        }
    }
}

type Relay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The process's ends of its streams, and the relays of the agent's ends.
pub struct ProcessStreams {
    pub for_process: ProcessEnds,
    relays: Vec<Relay>,
    terminal: Option<Claim>,
}

/// Keeps a terminal relayed, even while no process has it open: systemd, for one, closes its
/// console and opens it again to write.
pub struct Terminal {
    /// The relay owns the master; this one sets the size.
    pub master: Weak<Endpoint>,
    _slave: OwnedFd,
}

/// The descriptors that a process starts with.
pub struct ProcessEnds {
    /// 0 to 2. With a terminal they are /dev/null, until the process replaces them with the
    /// terminal it makes.
    pub stdio: [OwnedFd; 3],
    /// From 3 on; at most [`MAX_EXTRA`].
    pub extra: Vec<OwnedFd>,
}

impl ProcessEnds {
    pub fn extra_count(&self) -> u32 {
        self.extra.len() as u32
    }
}

/// Makes the pipes and claims the connections.
pub fn prepare(hub: &StreamHub, ids: &StreamIds) -> Result<ProcessStreams, StreamError> {
    if ids.extra.len() > MAX_EXTRA {
        return Err(StreamError::TooMany);
    }
    let mut relays = Vec::new();
    let (stdio, terminal) = if ids.terminal {
        let terminal = (ids.stdin != 0).then(|| hub.claim(ids.stdin)).transpose()?;
        ([null()?, null()?, null()?], terminal)
    } else {
        let stdio = [
            input(hub, ids.stdin, &mut relays)?,
            output(hub, ids.stdout, &mut relays)?,
            output(hub, ids.stderr, &mut relays)?,
        ];
        (stdio, None)
    };
    let mut extra = Vec::new();
    for wanted in &ids.extra {
        let id = wanted.stream;
        extra.push(match wanted.kind.enum_value_or_default() {
            Kind::INPUT => input(hub, id, &mut relays)?,
            Kind::OUTPUT => output(hub, id, &mut relays)?,
            Kind::SOCKET => socket(hub, id, &mut relays)?,
            Kind::FILE => file(wanted)?,
        });
    }
    Ok(ProcessStreams {
        for_process: ProcessEnds { stdio, extra },
        relays,
        terminal,
    })
}

fn input(hub: &StreamHub, id: u64, relays: &mut Vec<Relay>) -> Result<OwnedFd, StreamError> {
    if id == 0 {
        return null();
    }
    let (theirs, ours) = make_pipe()?;
    let claim = hub.claim(id)?;
    let ours = Endpoint::new(ours).doing(|| "watch an input")?;
    relays.push(Box::pin(async move {
        if let Some(connection) = claim.connection().await {
            relay::input(connection, ours).await;
        }
    }));
    Ok(theirs)
}

fn output(hub: &StreamHub, id: u64, relays: &mut Vec<Relay>) -> Result<OwnedFd, StreamError> {
    if id == 0 {
        return null();
    }
    let (ours, theirs) = make_pipe()?;
    let claim = hub.claim(id)?;
    let ours = Endpoint::new(ours).doing(|| "watch an output")?;
    relays.push(Box::pin(async move {
        if let Some(connection) = claim.connection().await {
            relay::output(ours, connection).await;
        }
    }));
    Ok(theirs)
}

fn socket(hub: &StreamHub, id: u64, relays: &mut Vec<Relay>) -> Result<OwnedFd, StreamError> {
    if id == 0 {
        return null();
    }
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .doing(|| "make a socket")?;
    let claim = hub.claim(id)?;
    let ours = Endpoint::new(ours).doing(|| "watch a socket")?;
    relays.push(Box::pin(async move {
        if let Some(connection) = claim.connection().await {
            relay::socket(ours, connection).await;
        }
    }));
    Ok(theirs)
}

/// Opens a file of the host as the host has it open. The offset of a file that has none, such as
/// one of a pseudo file system, is 0.
fn file(wanted: &ExtraDescriptor) -> Result<OwnedFd, StreamError> {
    let kept = OFlags::ACCMODE
        | OFlags::APPEND
        | OFlags::NONBLOCK
        | OFlags::DIRECT
        | OFlags::DSYNC
        | OFlags::SYNC
        | OFlags::NOATIME;
    let flags = OFlags::from_bits_retain(wanted.flags) & kept;
    let opened = rustix::fs::open(&wanted.path, flags | OFlags::CLOEXEC, Mode::empty());
    let file = opened.doing(|| format!("open {}", wanted.path))?;
    if wanted.offset != 0 {
        let start = SeekFrom::Start(wanted.offset);
        rustix::fs::seek(&file, start).doing(|| format!("seek in {}", wanted.path))?;
    }
    Ok(file)
}

impl ProcessStreams {
    /// Starts the relays and closes the agent's copies of the process's ends.
    pub fn start(self) {
        for relay in self.relays {
            tokio::spawn(relay);
        }
    }

    /// The same for a process that has made a terminal. The relay keeps the master open until the
    /// last slave is closed: no process has the terminal open, and the returned [`Terminal`] is
    /// dropped.
    pub fn start_terminal(mut self, master: OwnedFd) -> Result<Terminal, StreamError> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).doing(|| "open the terminal")?;
        let master = Arc::new(Endpoint::new(master).doing(|| "watch the terminal")?);
        let kept = Terminal {
            master: Arc::downgrade(&master),
            _slave: slave,
        };
        let terminal = self.terminal.take();
        self.start();
        tokio::spawn(async move {
            match terminal {
                None => relay::discard(master).await,
                Some(claim) => {
                    if let Some(connection) = claim.connection().await {
                        relay::terminal(master, connection).await;
                    }
                }
            }
        });
        Ok(kept)
    }
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd), StreamError> {
    Ok(pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe")?)
}

fn null() -> Result<OwnedFd, StreamError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty()).doing(|| "open /dev/null")?)
}
