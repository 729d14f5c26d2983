//! What other processes may ask of the one that owns a sandbox, over a socket in the sandbox's
//! directory.

mod wire;

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rvm_protocol::ContainerId;
use rvm_protocol::failure::{Coded, Failure, MAX_MESSAGE};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::RwLock;

use crate::dir::SandboxDir;
use crate::host::timings::Timings;
use crate::sandbox::{MemoryResult, Sandbox, SandboxError};
use crate::sizing::Change;
use crate::state::{StateError, Status, Store};
use rvm_sys::error_chain::chain;

/// The longest line that is read, in bytes. JSON makes six of a byte of a message at most.
const MAX_LINE: u64 = 8 * MAX_MESSAGE as u64;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to a sandbox's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Let a container's init process execute its program, in the network as it is now.
    Start {
        /// The container, which is `Created`.
        id: ContainerId,
    },
    /// Make the machine as large as a container's limits ask for.
    Resize(Box<Change>),
}

/// The owner did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens at the socket, or no answer came.
    #[error("the sandbox's owner does not answer")]
    Owner(#[source] io::Error),
    /// The owner says why it did not.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Has the owner of a sandbox carry out a request, and waits until that is done.
pub async fn ask(dir: &SandboxDir, request: Request) -> Result<MemoryResult, ControlError> {
    let answer = exchange(dir, request).await.map_err(ControlError::Owner)?;
    Ok(answer?)
}

async fn exchange(dir: &SandboxDir, request: Request) -> io::Result<Result<MemoryResult, Failure>> {
    let stream = dir.connect_to_owner()?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    stream.write_all(&wire::encode_request(&request)?).await?;
    Ok(wire::decode_answer(&read_line(&mut stream).await?)?)
}

/// Serves a sandbox for its owner: answers the requests of other processes, and follows the
/// network.
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

    /// Waits until the requests that are being carried out have their answers. [`Self::serve`] must
    /// be awaited meanwhile.
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
        let line = tokio::time::timeout(REQUEST_TIMEOUT, read_line(stream)).await??;
        let received = wire::decode_request(&line)?;
        let result = match &received.request {
            Ok(request) => self.carry_out(request).await,
            Err(failure) => Err(failure.clone()),
        };
        stream.write_all(&received.encode_answer(result)?).await
    }

    async fn carry_out(&self, request: &Request) -> Result<MemoryResult, Failure> {
        match request {
            Request::Start { id } => {
                let started = self.start(id).await.map_err(failed);
                started.map(|()| MemoryResult::AsAsked)
            }
            Request::Resize(change) => self.sandbox.resize(change).await.map_err(failed),
        }
    }

    /// Starts a container and writes down that it runs. Done here, it is done to the end even if
    /// the process that asked for it is killed meanwhile.
    async fn start(&self, id: &ContainerId) -> Result<(), RequestError> {
        let guest = self.sandbox.guest();
        let path = guest.dir().path();
        let container = Store::new(path.parent().unwrap_or(path).to_owned()).open(id.as_str())?;
        // An engine may have set the network up since the container was created.
        self.sandbox.sync_network().await?;
        let mut timings = Timings::default();
        guest.start_container(id, &mut timings).await?;
        match container.lock()?.step(Status::Running, |_| {}) {
            // It has ended meanwhile; it did run.
            Err(StateError::Step(step)) if step.from == Status::Stopped => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn failed(error: impl Coded) -> Failure {
    Failure::new(error.code(), chain(&error))
}

fn listen(listener: &UnixListener) -> io::Result<tokio::net::UnixListener> {
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream.take(MAX_LINE));
    reader.read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
