//! The code that each error has when it crosses a process border, in one place.

use std::error::Error;

use rvm_protocol::failure::{Code, Coded};

use crate::checkpoint::ImageError;
use crate::config::ConfigError;
use crate::container::cgroup::ContainerCgroupError;
use crate::container::lifecycle::LifecycleError;
use crate::container::start::StartError;
use crate::container::update::UpdateError;
use crate::control::{ControlError, RequestError};
use crate::engine::EngineError;
use crate::guest::agent::AgentError;
use crate::monitor::MonitorError;
use crate::monitor::exec::ExecError;
use crate::sandbox::{CheckpointError, ResizeError, SandboxError};
use crate::sizing::SizeError;
use crate::spec::SpecError;
use crate::state::StateError;

/// The code of an error whose type is not known any more: that of the first error in its chain of
/// sources that has one.
pub fn of(error: &(dyn Error + 'static)) -> Code {
    let known = |error: &(dyn Error + 'static)| {
        code_as::<LifecycleError>(error)
            .or(code_as::<MonitorError>(error))
            .or(code_as::<ExecError>(error))
            .or(code_as::<UpdateError>(error))
            .or(code_as::<StateError>(error))
            .or(code_as::<SpecError>(error))
            .or(code_as::<ConfigError>(error))
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = known(error) {
            return code;
        }
        next = error.source();
    }
    Code::Internal
}

fn code_as<E: Coded + 'static>(error: &(dyn Error + 'static)) -> Option<Code> {
    error.downcast_ref::<E>().map(Coded::code)
}

impl Coded for StateError {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) => Code::InvalidArgument,
            Self::Exists(_) => Code::AlreadyExists,
            Self::NotFound(_) => Code::NotFound,
            Self::Step(_) | Self::GivenUp(_) | Self::Newer(_) => Code::FailedPrecondition,
            Self::Io { .. } | Self::Damaged { .. } => Code::Internal,
        }
    }
}

impl Coded for AgentError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Connect(_) | Self::Lost { .. } => Code::Unavailable,
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Refused(failure) => failure.code(),
            Self::Version(_) => Code::Unimplemented,
            Self::Seed(_) | Self::Encode(_) => Code::Internal,
        }
    }
}

impl Coded for SizeError {
    fn code(&self) -> Code {
        match self {
            Self::NoRoomForVcpus { .. } | Self::NoRoomForMemory { .. } => Code::FailedPrecondition,
            Self::Cpuset(_) | Self::Annotation(..) | Self::Resources(..) | Self::Memory(_) => {
                Code::InvalidArgument
            }
        }
    }
}

impl Coded for SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::Agent(error) => error.code(),
            Self::Gone(_) => Code::FailedPrecondition,
            Self::Ended(_) => Code::Unavailable,
            _ => Code::Internal,
        }
    }
}

impl Coded for ResizeError {
    fn code(&self) -> Code {
        match self {
            Self::Size(error) => error.code(),
            Self::Guest(error) => error.code(),
            Self::NotTaken => Code::DeadlineExceeded,
            Self::Ended(_) => Code::Unavailable,
            Self::Engine(error) => error.code(),
        }
    }
}

impl Coded for EngineError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { failure, .. } => failure.code(),
            _ => Code::Internal,
        }
    }
}

impl Coded for RequestError {
    fn code(&self) -> Code {
        match self {
            Self::Sandbox(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Scratch { .. } => Code::Internal,
        }
    }
}

impl Coded for CheckpointError {
    fn code(&self) -> Code {
        match self {
            Self::Unsupported(_) | Self::Member { .. } | Self::NotMissing(_) | Self::Volume(_) => {
                Code::FailedPrecondition
            }
            Self::NoMember { .. } => Code::NotFound,
            Self::Engine(EngineError::Unsupported(_)) => Code::Unimplemented,
            Self::Engine(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::GivenUp(_) => Code::Unavailable,
            Self::Ended(_) => Code::Unavailable,
            Self::Image(error) => error.code(),
            Self::Record(_) | Self::Stdio(_) | Self::Storage(_) => Code::Internal,
        }
    }
}

impl Coded for ImageError {
    fn code(&self) -> Code {
        match self {
            Self::File { .. } => Code::Internal,
            Self::None(_) => Code::NotFound,
            Self::Manifest { .. } => Code::InvalidArgument,
            Self::Version { .. } => Code::FailedPrecondition,
        }
    }
}

impl Coded for ControlError {
    fn code(&self) -> Code {
        match self {
            Self::Owner(_) => Code::Unavailable,
            Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Failed(failure) => failure.code(),
        }
    }
}

impl Coded for SpecError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }
}

impl Coded for ContainerCgroupError {
    fn code(&self) -> Code {
        match self {
            Self::State(error) => error.code(),
            Self::Cgroup(_) => Code::Internal,
        }
    }
}

impl Coded for StartError {
    fn code(&self) -> Code {
        match self {
            Self::State(error) => error.code(),
            Self::NoSandbox(_) => Code::FailedPrecondition,
            Self::Spec(error) => error.code(),
            Self::Size(error) => error.code(),
            Self::Sandbox(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Container(failure) => failure.code(),
            _ => Code::Internal,
        }
    }
}

impl Coded for LifecycleError {
    fn code(&self) -> Code {
        match self {
            Self::Spec(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Monitor(failure) => failure.code(),
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::Storage(_)
            | Self::Cgroup(_)
            | Self::Hook(_)
            | Self::MonitorGone
            | Self::Copy(_)
            | Self::Io { .. } => Code::Internal,
        }
    }
}

impl Coded for UpdateError {
    fn code(&self) -> Code {
        match self {
            Self::Container(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Unsupported(_) | Self::Merge(_) => Code::InvalidArgument,
            Self::InUse { .. } => Code::FailedPrecondition,
            Self::Record(_) => Code::Internal,
        }
    }
}

impl Coded for MonitorError {
    fn code(&self) -> Code {
        match self {
            Self::State(error) => error.code(),
            Self::ContainerCgroup(error) => error.code(),
            Self::Start(error) => error.code(),
            _ => Code::Internal,
        }
    }
}

impl Coded for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::State(error) => error.code(),
            Self::Monitor(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::PidFile(error) => error.code(),
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::Stdio(_) | Self::Interrupted(_) | Self::Abandoned => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_protocol::ContainerId;
    use rvm_protocol::failure::Failure;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot go on")]
    struct Context(#[source] StateError);

    #[test]
    fn what_is_gone_is_not_found_however_it_is_wrapped() {
        let gone = || StateError::NotFound(ContainerId::new("web").unwrap());
        assert_eq!(LifecycleError::from(gone()).code(), Code::NotFound);
        assert_eq!(
            MonitorError::from(StartError::from(gone())).code(),
            Code::NotFound
        );
        assert_eq!(
            UpdateError::from(LifecycleError::from(gone())).code(),
            Code::NotFound
        );
        assert_eq!(of(&gone()), Code::NotFound);
        assert_eq!(of(&Context(gone())), Code::NotFound);
        assert_eq!(of(&std::io::Error::other("broken")), Code::Internal);
    }

    #[test]
    fn an_owners_failure_keeps_its_code() {
        let failure = Failure::new(Code::FailedPrecondition, "not now");
        let error = LifecycleError::from(ControlError::from(failure));
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(error.to_string(), "not now");
    }
}
