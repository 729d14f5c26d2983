//! What other processes may ask of the one that owns a sandbox, over a socket in the sandbox's
//! directory.

mod fork;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
mod wire;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rvm_protocol::ContainerId;
use rvm_protocol::failure::{Code, Coded, Failure, MAX_MESSAGE};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::RwLock;

use crate::checkpoint::SavedContainer;
use crate::dir::SandboxDir;
use crate::host::timings::Timings;
use crate::sandbox::{
    CheckpointError, ContainerToSave, MemoryResult, Sandbox, SandboxError, ToSave,
};
use crate::sizing::Change;
use crate::state::{State, StateError, Status, Store};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;

pub use fork::{Fork, Forking};

/// The longest line that is read, in bytes. JSON makes six of a byte of a message at most.
const MAX_LINE: u64 = 8 * MAX_MESSAGE as u64;

/// How long a client may take to send its request, and to take the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the owner waits before it takes the next request when it could not take one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the owner may take to give the guest its network, before it starts a container.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the owner may take to resize the machine: to bring CPUs online, plug memory and go back
/// to the old size, each of which has a limit of its own.
const RESIZE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the owner may take to write a machine to a disk.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(900);

/// The limit for the start of a container by an owner that does not say its own.
const UNKNOWN_START_TIMEOUT: Duration = Duration::from_secs(180);

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
    /// Write the machine to a checkpoint.
    Checkpoint {
        /// The container that it was made for, which runs or is paused.
        id: ContainerId,
        /// The directory, absolute.
        path: PathBuf,
        /// Whether it goes on.
        leave_running: bool,
    },
    /// Note that a process stands for a container of the machine, which was restored, and has
    /// shared its files.
    Adopted {
        /// As the checkpoint has it.
        saved: Box<SavedContainer>,
    },
    /// Write the machine to an image from which copies of its container are made.
    Fork(Fork),
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
    /// The owner is stopped, or busy with the requests of others.
    #[error("the sandbox's owner did not {request} within {} s", limit.as_secs())]
    TimedOut {
        /// What was asked for, as an infinitive.
        request: String,
        /// How long the client has waited.
        limit: Duration,
    },
}

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot make {}", path.display())]
    Scratch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Request {
    /// How long the owner may take, at most, if the start of a container may take `start`.
    fn owners_limit(&self, start: Duration) -> Duration {
        match self {
            Self::Start { .. } => start.saturating_add(NETWORK_TIMEOUT),
            Self::Resize(_) => RESIZE_TIMEOUT,
            Self::Checkpoint { .. } | Self::Adopted { .. } | Self::Fork(_) => CHECKPOINT_TIMEOUT,
        }
    }

    /// How long a client waits, who may have to wait for a request of another first.
    fn clients_limit(&self, start: Duration) -> Duration {
        let before = RESIZE_TIMEOUT.max(start.saturating_add(NETWORK_TIMEOUT));
        let both = self.owners_limit(start).saturating_add(before);
        both.saturating_add(REQUEST_TIMEOUT)
    }
}

/// The action, as an infinitive.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { id } => write!(f, "start container {id}"),
            Self::Resize(_) => f.write_str("change the machine's size"),
            Self::Checkpoint { id, .. } => write!(f, "checkpoint container {id}"),
            Self::Adopted { saved } => write!(f, "let container {} go on", saved.id),
            Self::Fork(fork) => write!(f, "make an image of container {}", fork.id),
        }
    }
}

/// Has the owner of a sandbox carry out a request, and waits until that is done.
pub async fn ask(dir: &SandboxDir, request: Request) -> Result<MemoryResult, ControlError> {
    let record = dir.record().ok().flatten();
    let start = record.and_then(|record| record.start_timeout_seconds);
    let start = start.map_or(UNKNOWN_START_TIMEOUT, Duration::from_secs);
    let limit = request.clients_limit(start);
    ask_within(limit, dir, &request).await
}

async fn ask_within(
    limit: Duration,
    dir: &SandboxDir,
    request: &Request,
) -> Result<MemoryResult, ControlError> {
    match tokio::time::timeout(limit, exchange(dir, request)).await {
        Ok(answer) => Ok(answer.map_err(ControlError::Owner)??),
        Err(_) => Err(ControlError::TimedOut {
            request: request.to_string(),
            limit,
        }),
    }
}

async fn exchange(
    dir: &SandboxDir,
    request: &Request,
) -> io::Result<Result<MemoryResult, Failure>> {
    let stream = dir.connect_to_owner()?;
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    fault_point!("control.ask")?;
    stream.write_all(&wire::encode_request(request)?).await?;
    fault_point!("control.asked")?;
    Ok(wire::decode_answer(&read_line(&mut stream).await?)?)
}

/// Serves a sandbox for its owner: answers the requests of other processes, follows the network,
/// keeps the guest's clock right, and notices when the guest falls silent.
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
        // Several, so that a request that takes long does not keep the next one waiting. Each has a
        // limit in time, and more requests wait in the socket's queue.
        let served = tokio::try_join!(
            self.follow_network(),
            async { Ok(self.sandbox.keep_clock().await) },
            self.serve_requests(),
            self.serve_requests(),
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

    /// Requests are answered whether or not the network can be followed.
    async fn follow_network(&self) -> Result<Infallible, SandboxError> {
        match self.sandbox.follow_network().await {
            Ok(never) => match never {},
            Err(ended @ SandboxError::Ended(_)) => Err(ended),
            Err(error) => {
                tracing::warn!(
                    "changes of the network do not reach the guest any more: {}",
                    chain(&error)
                );
                std::future::pending().await
            }
        }
    }

    async fn serve_requests(&self) -> Result<Infallible, SandboxError> {
        loop {
            let accepted = self.sandbox.control().accept().await;
            let (mut stream, _) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Without descriptors or memory for now. The client waits, as all that come
                    // after it would for an owner that gave up here.
                    tracing::debug!("cannot take a request to the sandbox's owner: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let _answering = self.answering.read().await;
            if let Err(error) = self.answer(&mut stream).await {
                tracing::debug!("a request to the sandbox's owner: {error}");
            }
        }
    }

    async fn answer(&self, stream: &mut UnixStream) -> io::Result<()> {
        fault_point!("control.accepted")?;
        let line = tokio::time::timeout(REQUEST_TIMEOUT, read_line(stream)).await??;
        let received = wire::decode_request(&line)?;
        let result = match &received.request {
            Ok(Request::Fork(fork)) => return self.fork(stream, &received, fork).await,
            Ok(request) => {
                let limit = request.owners_limit(self.sandbox.guest().start_timeout());
                within(limit, request, self.carry_out(request)).await
            }
            Err(failure) => Err(failure.clone()),
        };
        fault_point!("control.done")?;
        let answer = received.encode_answer(result)?;
        tokio::time::timeout(REQUEST_TIMEOUT, stream.write_all(&answer)).await?
    }

    async fn carry_out(&self, request: &Request) -> Result<MemoryResult, Failure> {
        match request {
            Request::Start { id } => {
                let started = self.start(id).await.map_err(failed);
                started.map(|()| MemoryResult::AsAsked)
            }
            Request::Resize(change) => self.sandbox.resize(change).await.map_err(failed),
            Request::Checkpoint {
                id,
                path,
                leave_running,
            } => {
                let saved = self.checkpoint(id, path, *leave_running).await;
                saved.map(|()| MemoryResult::AsAsked).map_err(failed)
            }
            Request::Adopted { saved } => {
                let adopted = self.sandbox.adopted(saved).await;
                adopted.map(|()| MemoryResult::AsAsked).map_err(failed)
            }
            // It has more than one answer.
            Request::Fork(_) => Err(failed(ControlError::Owner(
                io::ErrorKind::Unsupported.into(),
            ))),
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
        fault_point!("control.started").map_err(SandboxError::Record)?;
        match container.lock()?.step(Status::Running, |_| {}) {
            // It has ended meanwhile; it did run.
            Err(StateError::Step(step)) if step.from == Status::Stopped => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

impl Server<'_> {
    async fn checkpoint(
        &self,
        id: &ContainerId,
        dir: &Path,
        leave_running: bool,
    ) -> Result<(), RequestError> {
        let wanted = self.to_save(id, leave_running)?;
        Ok(self
            .sandbox
            .checkpoint(wanted, dir, async { Ok(()) })
            .await?)
    }

    /// What to save: the container that the machine was made for, and the members of its pod.
    fn to_save(&self, id: &ContainerId, leave_running: bool) -> Result<ToSave, RequestError> {
        let path = self.sandbox.guest().dir().path();
        let store = Store::new(path.parent().unwrap_or(path).to_owned());
        let mut containers = vec![container_to_save(&store.open(id.as_str())?.state()?)];
        for state in store.members(id)? {
            match state.status() {
                Status::Running | Status::Paused => containers.push(container_to_save(&state)),
                Status::Stopped => {}
                Status::Creating | Status::Created => {
                    let reason = "is created, and cannot be checkpointed before it is started";
                    return Err(CheckpointError::Member {
                        id: state.id,
                        reason,
                    }
                    .into());
                }
            }
        }
        Ok(ToSave {
            containers,
            leave_running,
        })
    }
}

fn container_to_save(state: &State) -> ContainerToSave {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    ContainerToSave {
        id: state.id.clone(),
        paused: state.status() == Status::Paused,
        guest_pid: state.guest_pid.unwrap_or(0),
        streams: state.streams,
        is_elsewhere: state.monitor.is_none_or(|monitor| monitor.pid != own),
        updated: state.updated_limits(),
    }
}

/// Carries a request out, but for no longer than `limit`.
async fn within<T>(
    limit: Duration,
    request: &Request,
    done: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let late = |_| {
        let message = format!(
            "the sandbox's owner could not {request} within {} s",
            limit.as_secs()
        );
        Err(Failure::new(Code::DeadlineExceeded, message))
    };
    tokio::time::timeout(limit, done).await.unwrap_or_else(late)
}

fn failed(error: impl Coded) -> Failure {
    Failure::new(error.code(), chain(&error))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const SHORT: Duration = Duration::from_millis(50);

    fn start() -> Request {
        Request::Start {
            id: ContainerId::new("web").unwrap(),
        }
    }

    #[tokio::test]
    async fn an_owner_that_never_answers_is_named_with_the_request_and_the_time() {
        let root = tempfile::tempdir().unwrap();
        let dir = SandboxDir::open(root.path()).unwrap();
        let _silent = dir.listen_as_owner().unwrap();
        let late = ask_within(SHORT, &dir, &start()).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert_eq!(
            late.to_string(),
            "the sandbox's owner did not start container web within 0 s"
        );
    }

    #[tokio::test]
    async fn a_request_that_gets_stuck_gives_its_place_free() {
        let stuck = pending::<Result<(), Failure>>();
        let late = within(SHORT, &start(), stuck).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(late.to_string().contains("start container web"), "{late}");
    }

    #[test]
    fn a_client_waits_longer_than_the_owner_works_on_its_request_and_on_the_one_before() {
        for seconds in [30, 180, 3600] {
            let limit = Duration::from_secs(seconds);
            let owners = start().owners_limit(limit);
            assert!(owners > limit);
            assert!(start().clients_limit(limit) > owners + owners.max(RESIZE_TIMEOUT));
        }
    }

    #[test]
    fn the_longest_start_that_can_be_configured_is_waited_for() {
        let limit = Duration::from_secs(u64::MAX);
        assert!(start().owners_limit(limit) >= limit);
        assert!(start().clients_limit(limit) >= limit);
    }
}
