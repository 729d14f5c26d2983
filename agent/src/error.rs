//! What can go wrong with a request, and the ttrpc code that it becomes.

use ttrpc::proto::Code;

use crate::container::cgroup::CgroupError;
use crate::container::{FilterError, LaunchError, SpecError, StateError};
use crate::network::NetworkError;
use crate::process::ProcessError;
use crate::size::SizeError;
use crate::streams::StreamError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The id is not `[A-Za-z0-9_+.-]+` of a reasonable length.
    #[error("invalid container ID format: {0:?}")]
    InvalidId(String),
    /// There is one already.
    #[error("container with given ID already exists: {0}")]
    ContainerExists(String),
    /// There is none.
    #[error("container does not exist: {0}")]
    NoSuchContainer(String),
    /// There is one already.
    #[error("exec {0} already exists")]
    ExecExists(String),
    /// There is none.
    #[error("exec {0} does not exist")]
    NoSuchExec(String),
    /// It runs, or it is the first process, which only goes with its container.
    #[error("exec {0:?} has not ended")]
    ExecNotFinished(String),
    /// The operation does not fit the container's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// config.json is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The system call filter is refused.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The limits are refused, or the cgroup fails.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The process could not be made.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The process cannot do that.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The standard streams could not be had.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The guest's network could not be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Names cannot be passed to the host.
    #[error("relay names to the host: {0}")]
    Names(std::io::Error),
    /// Nobody listens at the port.
    #[error("connect to the port: {0}")]
    Forward(std::io::Error),
    /// The copy of a volume cannot be made.
    #[error("copy a volume: {0}")]
    Volume(std::io::Error),
    /// The guest cannot have the size that it is to have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The request came to an end without an answer.
    #[error("the agent dropped the request")]
    Dropped,
}

impl AgentError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidId(_)
            | Self::Spec(_)
            | Self::Filter(_)
            | Self::Cgroup(CgroupError::Resource(_) | CgroupError::Refused { .. })
            | Self::Stream(StreamError::TooMany)
            | Self::Process(ProcessError::UnknownSignal(_)) => Code::INVALID_ARGUMENT,
            Self::ContainerExists(_) | Self::ExecExists(_) => Code::ALREADY_EXISTS,
            Self::NoSuchContainer(_)
            | Self::NoSuchExec(_)
            | Self::State(StateError::NotRunning)
            | Self::Process(ProcessError::Finished) => Code::NOT_FOUND,
            Self::State(_)
            | Self::ExecNotFinished(_)
            | Self::Process(ProcessError::NoTerminal)
            | Self::Stream(StreamError::Claimed(_)) => Code::FAILED_PRECONDITION,
            Self::Launch(_)
            | Self::Network(_)
            | Self::Forward(_)
            | Self::Volume(_)
            | Self::Size(_) => Code::UNKNOWN,
            Self::Cgroup(_)
            | Self::Process(_)
            | Self::Stream(_)
            | Self::Names(_)
            | Self::Dropped => Code::INTERNAL,
        }
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), &error))
    }
}
