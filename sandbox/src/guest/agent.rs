//! The client of the agent in the guest.
//!
//! The agent's replies are untrusted: text is truncated and stripped of control characters before
//! it is shown, numbers are checked, and nothing is used as a path.

mod clock;
mod containers;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "serves tests and a fuzzer alone"
)]
pub mod hostile;
mod network;
mod processes;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::rand::GetRandomFlags;
use rvm_protocol::agent::{
    AbsentDevice, AgentClient, CheckRequest, CheckResponse, CreateContainerRequest,
    StartContainerRequest, Stdio,
};
use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::{AGENT_PORT, AGENT_PROTOCOL_VERSION, ContainerId};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

pub use containers::Events;
pub use processes::{Exec, Exit};

use self::frames::{BoundedFrames, LongAnswers};
use super::document::Document;
use crate::dir::SandboxDir;
use crate::host::untrusted_text::clean;

/// The time limit for calls that do not wait for an event in the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The time limit for a signal, which engines send before they lose patience themselves: Docker
/// waits 10 s for a container to end.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after the host the agent gives a call up.
const AGENT_DELAY: Duration = Duration::from_secs(1);

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum AgentError {
    /// The machine has ended, most likely.
    #[error("cannot reach the sandbox")]
    Connect(#[source] io::Error),
    #[error("cannot draw random bytes for the guest")]
    Seed(#[source] io::Error),
    #[error("cannot encode the configuration for the guest")]
    Encode(#[from] serde_json::Error),
    /// The container or process does not exist in the guest.
    #[error("{0}")]
    NotFound(String),
    /// The agent's error.
    #[error(transparent)]
    Refused(Failure),
    /// With the version that the agent answered.
    #[error(
        "the sandbox's agent speaks protocol version {0} and this rvm speaks version \
         {AGENT_PROTOCOL_VERSION}: use the rvm and the guest of one release"
    )]
    Version(u32),
    /// The connection broke: the machine has ended, most likely.
    #[error("the sandbox's agent did not answer {call}: {reason}")]
    Lost { call: &'static str, reason: String },
    /// The guest is slow, frozen or hostile. Nothing follows from that about its containers.
    #[error("the sandbox's agent did not answer {call} within {limit:?}")]
    TimedOut { call: &'static str, limit: Duration },
}

/// A connection to a sandbox's agent. Calls may overlap.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    long_answers: LongAnswers,
    alias: Option<Arc<Alias>>,
}

/// A container that its guest knows by another id than the host: it was restored under a new one.
#[derive(Debug)]
struct Alias {
    host: ContainerId,
    guest: ContainerId,
}

impl Agent {
    /// Connects without waiting for the guest; the first call waits.
    pub fn connect(sandbox: &SandboxDir) -> Result<Self, AgentError> {
        let socket = sandbox.connect(AGENT_PORT).map_err(AgentError::Connect)?;
        let mut agent = Self::over(socket).map_err(AgentError::Connect)?;
        let alias = sandbox.alias().map_err(AgentError::Connect)?;
        agent.alias = alias.map(|(host, guest)| Arc::new(Alias { host, guest }));
        Ok(agent)
    }

    /// The id that the guest knows a container by.
    fn id(&self, host: &ContainerId) -> String {
        match &self.alias {
            Some(alias) if alias.host == *host => alias.guest.to_string(),
            _ => host.to_string(),
        }
    }

    /// The client of an agent at the other end of a socket.
    fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixStream::from_std(socket)?;
        let long_answers = LongAnswers::default();
        let frames = BoundedFrames::new(socket, long_answers.clone());
        Ok(Self {
            client: AgentClient::new(Client::new(Socket::new(frames))),
            long_answers,
            alias: None,
        })
    }

    /// Waits until the guest is up, for at most `limit`. Returns the versions of its agent and
    /// kernel, and boot times; refuses an agent of another protocol version. Seeds the guest's
    /// random number generator, whose state may be a template's, and so that of other guests.
    pub async fn check(&self, limit: Duration) -> Result<CheckResponse, AgentError> {
        let request = CheckRequest {
            seed: seed().map_err(AgentError::Seed)?,
            ..Default::default()
        };
        let call = self.client.check(unlimited(), &request);
        let answer = within(limit, "check", call).await?;
        match answer.protocol_version {
            // An agent that does not send its version speaks the first.
            0 | AGENT_PROTOCOL_VERSION => Ok(answer),
            other => Err(AgentError::Version(other)),
        }
    }

    /// Creates a container, whose init process waits for the start. Returns its pid in the guest.
    /// Hooks in the guest count against `limit`.
    pub async fn create_container(
        &self,
        id: &ContainerId,
        (spec, absent_devices): (Document, Vec<AbsentDevice>),
        stdio: Stdio,
        limit: Duration,
    ) -> Result<u32, AgentError> {
        let request = CreateContainerRequest {
            container_id: self.id(id),
            spec: spec.inline,
            spec_stream: spec.stream,
            absent_devices,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let call = self.client.create_container(unlimited(), &request);
        let answer = within(limit, "create container", call).await?;
        Ok(answer.pid)
    }

    /// Starts a container: its init process executes the program. Hooks in the guest count against
    /// `limit`.
    pub async fn start_container(
        &self,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let call = self.client.start_container(unlimited(), &request);
        within(limit, "start container", call).await.map(|_| ())
    }
}

/// Random bytes for the guest's generator, as many as its key has.
fn seed() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; 32];
    // Up to 256 bytes come whole, see getrandom(2).
    rustix::rand::getrandom(&mut seed, GetRandomFlags::empty())?;
    Ok(seed)
}

/// For calls that the agent carries out to the end, however long the host waits.
fn unlimited() -> Context {
    Context::default()
}

/// For calls that the agent gives up soon after the host has.
fn limited() -> Context {
    context::with_duration(CALL_TIMEOUT + AGENT_DELAY)
}

/// Waits for an answer, but no longer than `limit`.
async fn within<T>(
    limit: Duration,
    name: &'static str,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(failed(name)),
        Err(_) => Err(AgentError::TimedOut { call: name, limit }),
    }
}

fn failed(call: &'static str) -> impl FnOnce(ttrpc::Error) -> AgentError {
    move |error| match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND => {
            AgentError::NotFound(clean(status.message()))
        }
        ttrpc::Error::RpcStatus(status) => {
            AgentError::Refused(Failure::new(code(status.code()), clean(status.message())))
        }
        error => AgentError::Lost {
            call,
            reason: clean(&error.to_string()),
        },
    }
}

fn code(code: ttrpc::Code) -> Code {
    match code {
        ttrpc::Code::ALREADY_EXISTS => Code::AlreadyExists,
        ttrpc::Code::FAILED_PRECONDITION => Code::FailedPrecondition,
        ttrpc::Code::INVALID_ARGUMENT => Code::InvalidArgument,
        ttrpc::Code::UNIMPLEMENTED => Code::Unimplemented,
        ttrpc::Code::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests;
