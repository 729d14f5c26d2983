//! The agent in the guest, as the host calls it.
//!
//! What it answers comes from the guest and is taken as such: text is cut and cleaned before it is
//! shown, numbers are checked, and nothing is used as a path.

mod containers;
mod network;
mod processes;

use std::io;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rvm_protocol::agent::{
    AgentClient, CheckRequest, CheckResponse, CreateContainerRequest, ResizeTerminalRequest,
    SignalProcessRequest, StartContainerRequest, Stdio, WaitProcessRequest,
};
use rvm_protocol::failure::{Code, Failure};
use rvm_protocol::{AGENT_PORT, AGENT_PROTOCOL_VERSION};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{self, Context};

pub use containers::Events;
pub use processes::{Exec, Exit};

use crate::dir::SandboxDir;

/// How long the agent may take to answer what needs no waiting.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest message of the agent's that is shown, in bytes.
const MAX_MESSAGE: usize = 4096;

/// A call to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no machine behind the socket any more.
    #[error("cannot reach the sandbox")]
    Connect(#[source] io::Error),
    /// The configuration cannot be sent.
    #[error("cannot encode the configuration for the guest")]
    Encode(#[from] serde_json::Error),
    /// The agent says that there is no such container or process.
    #[error("{0}")]
    NotFound(String),
    /// The agent refused, and says why.
    #[error(transparent)]
    Refused(Failure),
    /// Holds the version that the agent answered.
    #[error(
        "the sandbox's agent speaks protocol version {0} and this rvm speaks version \
         {AGENT_PROTOCOL_VERSION}: use the rvm and the guest of one release"
    )]
    Version(u32),
    /// The connection broke, or the agent took too long.
    #[error("the sandbox's agent did not answer {call}: {reason}")]
    Lost {
        /// Which call.
        call: &'static str,
        /// What happened to it.
        reason: String,
    },
}

/// A connection to a sandbox's agent. Calls may overlap.
#[derive(Clone)]
pub struct Agent(AgentClient);

impl Agent {
    /// Connects. This does not wait for the guest; the first call does.
    pub fn connect(sandbox: &SandboxDir) -> Result<Self, AgentError> {
        let socket = sandbox.connect(AGENT_PORT).map_err(AgentError::Connect)?;
        socket.set_nonblocking(true).map_err(AgentError::Connect)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(AgentError::Connect)?;
        Ok(Self(AgentClient::new(Client::new(Socket::new(socket)))))
    }

    /// Asks what runs in the guest. Waits for the guest to come up, and refuses an agent of another
    /// protocol version.
    pub async fn check(&self) -> Result<CheckResponse, AgentError> {
        let answer = self.0.check(unlimited(), &CheckRequest::new()).await;
        let answer = answer.map_err(failed("check"))?;
        match answer.protocol_version {
            // An agent that does not send its version speaks the first.
            0 | AGENT_PROTOCOL_VERSION => Ok(answer),
            other => Err(AgentError::Version(other)),
        }
    }

    /// Makes a container, whose first process then waits; returns its number in the guest.
    pub async fn create_container(
        &self,
        id: &str,
        spec: &Spec,
        stdio: Stdio,
    ) -> Result<u32, AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: serde_json::to_vec(spec)?,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        // Hooks in the guest have time-outs of their own.
        let answer = self.0.create_container(unlimited(), &request).await;
        answer
            .map(|answer| answer.pid)
            .map_err(failed("create container"))
    }

    /// Lets a container's first process execute the program.
    pub async fn start_container(&self, id: &str) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.0.start_container(unlimited(), &request).await;
        answer.map(|_| ()).map_err(failed("start container"))
    }

    /// Signals a container's first process, or all of its processes.
    pub async fn signal(&self, id: &str, signal: i32, all: bool) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        let answer = self.0.signal_process(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("signal process"))
    }

    /// Waits until a container's first process has ended; returns what a shell would report.
    pub async fn wait(&self, id: &str) -> Result<u8, AgentError> {
        let request = WaitProcessRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self.0.wait_process(unlimited(), &request).await;
        let status = answer.map_err(failed("wait process"))?.exit_status;
        // Only a guest that was taken over reports another.
        Ok(u8::try_from(status).unwrap_or(u8::MAX))
    }

    /// Sets the size of the terminal of a container's first process.
    pub async fn resize(&self, id: &str, rows: u16, cols: u16) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: id.to_owned(),
            rows: rows.into(),
            cols: cols.into(),
            ..Default::default()
        };
        let answer = self.0.resize_terminal(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("resize terminal"))
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

/// A message as it may be shown on a terminal and written to a log.
fn clean(message: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut clean: String = message.chars().map(printable).collect();
    let end = (0..=MAX_MESSAGE.min(clean.len())).rfind(|&end| clean.is_char_boundary(end));
    clean.truncate(end.unwrap_or(0));
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_from_the_guest_cannot_move_the_cursor_or_fill_the_log() {
        let message = format!("\u{1b}[2J no such file\n{}", "ä".repeat(5000));
        let clean = clean(&message);
        assert!(clean.len() <= MAX_MESSAGE && !clean.contains(char::is_control));
        assert!(clean.contains("no such file"));
    }
}
