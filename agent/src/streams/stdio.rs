//! A process's three standard streams, as descriptors for it and relays for us.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rvm_protocol::agent::Stdio;

use super::{Claim, Endpoint, StreamError, StreamHub, relay};
use crate::sys::Doing as _;

/// Which connections carry a process's standard streams; 0 is none.
#[derive(Clone, Debug, Default)]
pub struct StreamIds {
    /// Whether the process gets a terminal, carried by `stdin` both ways.
    pub terminal: bool,
    /// Standard input.
    pub stdin: u64,
    /// Standard output.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
    /// The terminal's size in characters, 0 where unset.
    pub rows: u16,
    /// See `rows`.
    pub cols: u16,
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
        }
    }
}

type Relay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The process's ends of its streams, and what will serve ours.
pub struct ProcessStreams {
    /// Descriptors 0 to 2 of the process. With a terminal they are /dev/null, until the process
    /// replaces them with the terminal it makes.
    pub for_process: [OwnedFd; 3],
    relays: Vec<Relay>,
    terminal: Option<Claim>,
}

/// Makes the pipes and asks for the connections.
pub fn prepare(hub: &StreamHub, ids: &StreamIds) -> Result<ProcessStreams, StreamError> {
    let mut relays = Vec::new();
    if ids.terminal {
        let terminal = (ids.stdin != 0).then(|| hub.claim(ids.stdin)).transpose()?;
        return Ok(ProcessStreams {
            for_process: [null()?, null()?, null()?],
            relays,
            terminal,
        });
    }
    let stdin = match ids.stdin {
        0 => null()?,
        id => {
            let (theirs, ours) = make_pipe()?;
            let claim = hub.claim(id)?;
            let ours = Endpoint::new(ours).doing(|| "watch standard input")?;
            relays.push(Box::pin(async move {
                if let Some(connection) = claim.connection().await {
                    relay::input(connection, ours).await;
                }
            }) as Relay);
            theirs
        }
    };
    let stdout = output(hub, ids.stdout, &mut relays)?;
    let stderr = output(hub, ids.stderr, &mut relays)?;
    Ok(ProcessStreams {
        for_process: [stdin, stdout, stderr],
        relays,
        terminal: None,
    })
}

fn output(hub: &StreamHub, id: u64, relays: &mut Vec<Relay>) -> Result<OwnedFd, StreamError> {
    if id == 0 {
        return null();
    }
    let (ours, theirs) = make_pipe()?;
    let claim = hub.claim(id)?;
    let ours = Endpoint::new(ours).doing(|| "watch standard output")?;
    relays.push(Box::pin(async move {
        if let Some(connection) = claim.connection().await {
            relay::output(ours, connection).await;
        }
    }));
    Ok(theirs)
}

impl ProcessStreams {
    /// Starts relaying and closes the process's ends here.
    pub fn start(self) {
        for relay in self.relays {
            tokio::spawn(relay);
        }
    }

    /// The same for a process that has made a terminal. Its master stays open as long as the relay
    /// runs; what is returned serves for its size.
    pub fn start_terminal(self, master: OwnedFd) -> Result<Weak<Endpoint>, StreamError> {
        let master = Arc::new(Endpoint::new(master).doing(|| "watch the terminal")?);
        let weak = Arc::downgrade(&master);
        tokio::spawn(async move {
            match self.terminal {
                None => relay::discard(master).await,
                Some(claim) => {
                    if let Some(connection) = claim.connection().await {
                        relay::terminal(master, connection).await;
                    }
                }
            }
        });
        Ok(weak)
    }
}

fn make_pipe() -> Result<(OwnedFd, OwnedFd), StreamError> {
    Ok(pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe")?)
}

fn null() -> Result<OwnedFd, StreamError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty()).doing(|| "open /dev/null")?)
}
