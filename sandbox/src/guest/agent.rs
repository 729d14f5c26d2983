//! The client of the agent in the guest.
//!
//! The agent's replies are untrusted: text is truncated and stripped of control characters before
//! it is shown, numbers are checked, and nothing is used as a path.

mod containers;
mod network;
mod processes;

use std::io;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rvm_protocol::agent::{
    AgentClient, CheckRequest, CheckResponse, CreateContainerRequest, StartContainerRequest, Stdio,
};
use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::{AGENT_PORT, AGENT_PROTOCOL_VERSION, ContainerId};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

pub use containers::Events;
pub use processes::{Exec, Exit};

use crate::dir::SandboxDir;
use crate::host::untrusted_text::clean;

/// The time limit for calls that do not wait for an event in the guest.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum AgentError {
    /// The machine has ended, most likely.
    #[error("cannot reach the sandbox")]
    Connect(#[source] io::Error),
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
    /// The connection broke or the call timed out.
    #[error("the sandbox's agent did not answer {call}: {reason}")]
    Lost { call: &'static str, reason: String },
}

/// A connection to a sandbox's agent. Calls may overlap.
#[derive(Clone)]
pub struct Agent(AgentClient);

impl Agent {
    /// Connects without waiting for the guest; the first call waits.
    pub fn connect(sandbox: &SandboxDir) -> Result<Self, AgentError> {
        let socket = sandbox.connect(AGENT_PORT).map_err(AgentError::Connect)?;
        socket.set_nonblocking(true).map_err(AgentError::Connect)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(AgentError::Connect)?;
        Ok(Self(AgentClient::new(Client::new(Socket::new(socket)))))
    }

    /// Waits until the guest is up. Returns the versions of its agent and kernel, and boot times;
    /// refuses an agent of another protocol version.
    pub async fn check(&self) -> Result<CheckResponse, AgentError> {
        let answer = self.0.check(unlimited(), &CheckRequest::new()).await;
        let answer = answer.map_err(failed("check"))?;
        match answer.protocol_version {
            // An agent that does not send its version speaks the first.
            0 | AGENT_PROTOCOL_VERSION => Ok(answer),
            other => Err(AgentError::Version(other)),
        }
    }

    /// Creates a container, whose init process waits for the start. Returns its pid in the guest.
    pub async fn create_container(
        &self,
        id: &ContainerId,
        spec: &Spec,
        stdio: Stdio,
    ) -> Result<u32, AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_string(),
            spec: serde_json::to_vec(spec)?,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        // Hooks in the guest have their own timeouts.
        let answer = self.0.create_container(unlimited(), &request).await;
        answer
            .map(|answer| answer.pid)
            .map_err(failed("create container"))
    }

    /// Starts a container: its init process executes the program.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.0.start_container(unlimited(), &request).await;
        answer.map(|_| ()).map_err(failed("start container"))
    }
}

fn unlimited() -> Context {
    Context::default()
}

fn limited() -> Context {
    context::with_duration(CALL_TIMEOUT)
}

fn failed(call: &'static str) -> impl FnOnce(ttrpc::Error) -> AgentError {
    move |error| match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::NOT_FOUND => {
            AgentError::NotFound(clean(status.message()))
        }
        ttrpc::Error::RpcStatus(status) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
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
        _ => Code::Internal,
    }
}
