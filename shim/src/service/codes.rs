//! The code of each of the shim's errors, in one place. runc's shim is the model where clients act
//! on a code: what has ended cannot be found, what is running cannot be deleted.

use rvm_protocol::failure::{Code, Coded};

use super::error::ServiceError;
use crate::options::OptionsError;
use crate::pod::error::{CreateError, PodError, Refusal};
use crate::sandbox_bundle::SandboxBundleError;
use crate::stdio::OpenError;

impl Coded for OptionsError {
    fn code(&self) -> Code {
        match self {
            Self::Decode { .. }
            | Self::UnknownType(_)
            | Self::OtherRuntime { .. }
            | Self::UnknownCheckpointType(_)
            | Self::CgroupsMode(_)
            | Self::NoPath => Code::InvalidArgument,
            Self::Write { .. } => Code::Internal,
        }
    }
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Scheme { .. } => Code::InvalidArgument,
            Self::Open { .. } | Self::Logger { .. } => Code::Internal,
        }
    }
}

impl Coded for SandboxBundleError {
    fn code(&self) -> Code {
        match self {
            Self::UnknownType(_) | Self::Decode(_) => Code::InvalidArgument,
            Self::Write { .. } => Code::Internal,
        }
    }
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoProcess(_) | Self::Finished | Self::NoCgroup(_) => {
                Code::NotFound
            }
            Self::ContainerExists(_) | Self::ProcessExists(_) => Code::AlreadyExists,
            Self::NotRunning(_)
            | Self::NotStopped { .. }
            | Self::ResizeStopped
            | Self::ExecNotStarted
            | Self::ExecStarted
            | Self::ExecRunning => Code::FailedPrecondition,
            Self::UnknownSignal(_) => Code::InvalidArgument,
        }
    }
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Options(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Spec(error) => error.code(),
            Self::Lifecycle(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Streams(error) => error.code(),
            Self::Start(error) => error.code(),
            Self::Checkpoint(error) => error.code(),
            Self::Disks(_) => Code::InvalidArgument,
            Self::Rootfs(_) | Self::Network(_) | Self::Host { .. } => Code::Internal,
        }
    }
}

impl Coded for PodError {
    fn code(&self) -> Code {
        match self {
            Self::Refused(error) => error.code(),
            Self::Create(error) => error.code(),
            Self::Streams(error) => error.code(),
            Self::Lifecycle(error) => error.code(),
            Self::Update(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Relay(_) | Self::Rootfs(_) => Code::Internal,
        }
    }
}

impl Coded for ServiceError {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) | Self::Decode { .. } => Code::InvalidArgument,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::NoSandbox(_) => Code::NotFound,
            Self::Options(error) => error.code(),
            Self::Pod(error) => error.code(),
            Self::SandboxBundle(error) => error.code(),
            Self::Rootfs(_) => Code::Internal,
        }
    }
}
