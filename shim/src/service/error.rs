//! Failures of requests, and the one place where they become statuses of ttrpc.

use rvm_protocol::InvalidId;
use rvm_protocol::failure::{Code, Coded as _};
use rvm_sys::error_chain::chain;

use crate::options::OptionsError;
use crate::pod::error::{PodError, Refusal};
use crate::rootfs::RootfsError;
use crate::sandbox_bundle::SandboxBundleError;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("cannot decode {what} of type {kind}")]
    Decode {
        what: &'static str,
        kind: String,
        source: serde_json::Error,
    },
    #[error("{0} is not implemented by rvm")]
    Unimplemented(&'static str),
    #[error("sandbox {0} not created")]
    NoSandbox(String),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    SandboxBundle(#[from] SandboxBundleError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}

impl From<Refusal> for ServiceError {
    fn from(refusal: Refusal) -> Self {
        Self::Pod(refusal.into())
    }
}

impl From<PodError> for ttrpc::Error {
    fn from(error: PodError) -> Self {
        ServiceError::from(error).into()
    }
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        ServiceError::from(refusal).into()
    }
}

impl From<ServiceError> for ttrpc::Error {
    fn from(error: ServiceError) -> Self {
        Self::RpcStatus(ttrpc::get_status(status(error.code()), chain(&error)))
    }
}

fn status(code: Code) -> ttrpc::Code {
    match code {
        Code::NotFound => ttrpc::Code::NOT_FOUND,
        Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Code::Unavailable => ttrpc::Code::UNAVAILABLE,
        Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
        Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
        // As runc's shim answers; containerd 1.6 knows no internal errors.
        Code::Internal => ttrpc::Code::UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use rvm_protocol::failure::Failure;
    use rvm_protocol::{ContainerId, ExecId};
    use rvm_sandbox::container::lifecycle::LifecycleError;
    use rvm_sandbox::control::ControlError;
    use rvm_sandbox::guest::agent::AgentError;
    use rvm_sandbox::state::{StateError, Status};

    fn code(error: impl Into<PodError>) -> ttrpc::Code {
        match ttrpc::Error::from(error.into()) {
            ttrpc::Error::RpcStatus(status) => status.code(),
            _ => ttrpc::Code::OK,
        }
    }

    fn id() -> ContainerId {
        ContainerId::new("a").unwrap()
    }

    #[test]
    fn containerd_is_told_what_is_gone_and_what_is_taken() {
        assert_eq!(code(Refusal::NoContainer(id())), ttrpc::Code::NOT_FOUND);
        assert_eq!(
            code(Refusal::ContainerExists(id())),
            ttrpc::Code::ALREADY_EXISTS
        );
        let gone = AgentError::NotFound("no such process".to_owned());
        assert_eq!(code(gone), ttrpc::Code::NOT_FOUND);
        let taken = StateError::Exists(id());
        assert_eq!(code(taken), ttrpc::Code::ALREADY_EXISTS);
    }

    #[test]
    fn kill_after_exit_is_not_found() {
        assert_eq!(code(Refusal::Finished), ttrpc::Code::NOT_FOUND);
        let exec = ExecId::new("1").unwrap();
        assert_eq!(code(Refusal::NoProcess(exec)), ttrpc::Code::NOT_FOUND);
    }

    #[test]
    fn deletion_of_what_runs_is_a_failed_precondition() {
        let (id, status) = (id(), Status::Running);
        let running = Refusal::NotStopped { id, status };
        assert_eq!(code(running), ttrpc::Code::FAILED_PRECONDITION);
        assert_eq!(code(Refusal::ExecRunning), ttrpc::Code::FAILED_PRECONDITION);
    }

    #[test]
    fn a_failure_of_another_process_keeps_its_code() {
        let failure = |code| ControlError::from(Failure::new(code, "no"));
        let of = |code_of_owner| code(LifecycleError::from(failure(code_of_owner)));
        assert_eq!(of(Code::NotFound), ttrpc::Code::NOT_FOUND);
        assert_eq!(of(Code::Unavailable), ttrpc::Code::UNAVAILABLE);
        assert_eq!(of(Code::DeadlineExceeded), ttrpc::Code::DEADLINE_EXCEEDED);
        assert_eq!(of(Code::Internal), ttrpc::Code::UNKNOWN);
    }

    #[test]
    fn a_machine_that_is_gone_is_unavailable() {
        let gone = AgentError::Lost {
            call: "exec",
            reason: "closed".to_owned(),
        };
        assert_eq!(code(gone), ttrpc::Code::UNAVAILABLE);
    }

    #[test]
    fn an_agent_that_is_late_exceeds_the_deadline() {
        let late = AgentError::TimedOut {
            call: "exec",
            limit: Duration::from_secs(60),
        };
        assert_eq!(code(late), ttrpc::Code::DEADLINE_EXCEEDED);
    }
}
