//! A failed request, and the ttrpc status that it becomes.

use rvm_protocol::InvalidId;
use rvm_sys::error_chain::chain;
use ttrpc::proto::Code;

use crate::cgroup::CgroupError;
use crate::clock::ClockError;
use crate::container::{ContainerError, StateError};
use crate::disks::DiskError;
use crate::entropy::SeedError;
use crate::network::NetworkError;
use crate::process::ProcessError;
use crate::sandbox::SandboxError;
use crate::size::SizeError;
use crate::streams::StreamError;

/// Why a request failed. The host gets [`RequestError::code`] and the messages of all sources.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("relay names to the host")]
    RelayNames(#[source] std::io::Error),
    #[error("connect to the port")]
    Forward(#[source] std::io::Error),
    #[error(transparent)]
    Resize(#[from] SizeError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The task of the request panicked or was cancelled.
    #[error("the agent dropped the request")]
    Dropped,
}

impl RequestError {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) | Self::Seed(SeedError::TooLong(_)) => Code::INVALID_ARGUMENT,
            Self::Sandbox(error) => sandbox_code(error),
            Self::Network(_)
            | Self::Forward(_)
            | Self::Resize(_)
            | Self::Clock(_)
            | Self::Seed(SeedError::Os(_)) => Code::UNKNOWN,
            Self::RelayNames(_) | Self::Dropped => Code::INTERNAL,
        }
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::ContainerExists(_) => Code::ALREADY_EXISTS,
        SandboxError::NoSuchContainer(_) => Code::NOT_FOUND,
        SandboxError::Container(error) => container_code(error),
        SandboxError::Disks(DiskError::Request(_)) => Code::INVALID_ARGUMENT,
        SandboxError::Share(_) | SandboxError::Disks(_) | SandboxError::CopyVolume(_) => {
            Code::UNKNOWN
        }
    }
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::ExecExists(_) => Code::ALREADY_EXISTS,
        ContainerError::NoSuchExec(_)
        | ContainerError::State(StateError::NotRunning)
        | ContainerError::Process(ProcessError::Finished) => Code::NOT_FOUND,
        ContainerError::Spec(_)
        | ContainerError::Filter(_)
        | ContainerError::Cgroup(CgroupError::Resource(_) | CgroupError::Refused { .. })
        | ContainerError::Process(ProcessError::UnknownSignal(_))
        | ContainerError::Stream(StreamError::TooMany) => Code::INVALID_ARGUMENT,
        ContainerError::ExecNotFinished(_)
        | ContainerError::State(_)
        | ContainerError::Process(ProcessError::NoTerminal)
        | ContainerError::Stream(StreamError::Claimed(_)) => Code::FAILED_PRECONDITION,
        ContainerError::Launch(_) => Code::UNKNOWN,
        ContainerError::Cgroup(_) | ContainerError::Process(_) | ContainerError::Stream(_) => {
            Code::INTERNAL
        }
    }
}

impl From<ContainerError> for RequestError {
    fn from(error: ContainerError) -> Self {
        SandboxError::from(error).into()
    }
}

impl From<ProcessError> for RequestError {
    fn from(error: ProcessError) -> Self {
        ContainerError::from(error).into()
    }
}

impl From<RequestError> for ttrpc::Error {
    fn from(error: RequestError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rvm_protocol::ContainerId;

    use super::*;
    use crate::container::LaunchError;
    use crate::sys::OsError;

    fn status(error: impl Into<RequestError>) -> (Code, String) {
        let ttrpc::Error::RpcStatus(status) = error.into().into() else {
            panic!("no status");
        };
        (status.code(), status.message)
    }

    #[test]
    fn a_container_that_is_not_there_is_not_found() {
        let id = ContainerId::new("web").unwrap();
        let error = SandboxError::NoSuchContainer(id);
        let expected = (Code::NOT_FOUND, "container does not exist: web".to_owned());
        assert_eq!(status(error), expected);
    }

    #[test]
    fn a_message_has_its_sources_once() {
        let source = OsError {
            action: "make a pipe".to_owned(),
            errno: Errno::MFILE,
        };
        let error = ContainerError::from(LaunchError::from(source));
        let message = "unable to start container process: make a pipe: too many open files";
        assert_eq!(status(error), (Code::UNKNOWN, message.to_owned()));
        let error = RequestError::Forward(Errno::CONNREFUSED.into());
        let (_, message) = status(error);
        assert!(message.starts_with("connect to the port: Connection refused"));
    }

    #[test]
    fn an_operation_that_the_state_forbids_has_a_failed_precondition() {
        let error = ContainerError::from(StateError::ExecPaused);
        assert_eq!(status(error).0, Code::FAILED_PRECONDITION);
        let error = ContainerError::from(StateError::NotRunning);
        assert_eq!(status(error).0, Code::NOT_FOUND);
    }
}
