//! What others may ask of the process that owns a sandbox: over a socket in the sandbox's directory,
//! a line of JSON each way.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::RwLock;

use crate::dir::SandboxDir;
use crate::host::error_chain::chain;
use crate::sandbox::{MemoryResult, Sandbox, SandboxError};
use crate::sizing::Change;
use crate::state::{StateError, Status, Store};

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// How long whoever asks may take to say what.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Lets the first process of a container execute its program, in the network as it is now.
    Start {
        /// The container.
        id: String,
    },
    /// Makes the machine as large as a container's limits ask for.
    Resize(Box<Change>),
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done,
    /// The machine keeps more memory than it was to have.
    KeepsMemory,
    Failed(String),
}

/// The owner did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is not there, or does not answer.
    #[error("the sandbox's owner does not answer")]
    Owner(#[source] io::Error),
    /// It says why.
    #[error("{0}")]
    Failed(String),
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// The guest, or its network.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The container's state.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Has the owner of a sandbox do something, and waits until it is done.
pub async fn ask(dir: &SandboxDir, request: Request) -> Result<MemoryResult, ControlError> {
    let answer = exchange(dir, request).await.map_err(ControlError::Owner)?;
    match answer {
        Answer::Done => Ok(MemoryResult::AsAsked),
        Answer::KeepsMemory => Ok(MemoryResult::Kept),
        Answer::Failed(reason) => Err(ControlError::Failed(reason)),
    }
}

async fn exchange(dir: &SandboxDir, request: Request) -> io::Result<Answer> {
    let stream = dir.connect_to_owner()?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    write_line(&mut stream, &request).await?;
    read_line(&mut stream).await
}

/// Serves a sandbox for its owner: answers the requests of other processes, and follows the network.
pub struct Server<'a> {
    sandbox: &'a Sandbox,
    /// Read while a request is carried out.
    answering: RwLock<()>,
}

impl<'a> Server<'a> {
    /// A server that does nothing until [`Self::serve`] is awaited.
    pub fn new(sandbox: &'a Sandbox) -> Self {
        Self {
            sandbox,
            answering: RwLock::default(),
        }
    }

    /// Serves until that has become impossible.
    pub async fn serve(&self) -> SandboxError {
        // Two, so that a request that takes long does not keep the next one waiting.
        let served = tokio::try_join!(
            self.sandbox.follow_network(),
            self.serve_requests(),
            self.serve_requests()
        );
        match served {
            Err(error) => error,
            Ok((never, ..)) => match never {},
        }
    }

    /// Waits until the requests that are being carried out have their answers. [`Self::serve`] must be
    /// awaited meanwhile.
    pub async fn all_answered(&self) {
        drop(self.answering.write().await);
    }

    async fn serve_requests(&self) -> Result<Infallible, SandboxError> {
        let listener = listen(self.sandbox.control()).map_err(SandboxError::Sockets)?;
        loop {
            let (mut stream, _) = listener.accept().await.map_err(SandboxError::Sockets)?;
            let _answering = self.answering.read().await;
            if let Err(error) = self.answer(&mut stream).await {
                tracing::debug!("a request to the sandbox's owner: {error}");
            }
        }
    }

    async fn answer(&self, stream: &mut UnixStream) -> io::Result<()> {
        let request = tokio::time::timeout(PATIENCE, read_line(stream)).await??;
        let answer = match request {
            Request::Start { id } => self.start(&id).await.map_or_else(failed, done),
            Request::Resize(change) => match self.sandbox.resize(&change).await {
                Ok(MemoryResult::AsAsked) => Answer::Done,
                Ok(MemoryResult::Kept) => Answer::KeepsMemory,
                Err(error) => failed(error),
            },
        };
        write_line(stream, &answer).await
    }

    /// Starts a container and writes down that it runs. Done here, it is done to the end even if the
    /// process that asked for it is killed meanwhile.
    async fn start(&self, id: &str) -> Result<(), StartError> {
        let guest = self.sandbox.guest();
        let path = guest.dir().path();
        let container = Store::new(path.parent().unwrap_or(path).to_owned()).open(id)?;
        // An engine may have set the network up since the container was created.
        self.sandbox.sync_network().await?;
        let started = guest.agent().start_container(id).await;
        started.map_err(SandboxError::from)?;
        match container.lock()?.step(Status::Running, |_| {}) {
            // It has ended meanwhile; it did run.
            Err(StateError::Step(step)) if step.from == Status::Stopped => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn done((): ()) -> Answer {
    Answer::Done
}

fn failed(error: impl Error) -> Answer {
    Answer::Failed(chain(&error))
}

fn listen(listener: &UnixListener) -> io::Result<tokio::net::UnixListener> {
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

async fn write_line<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn read_line<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    reader.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
