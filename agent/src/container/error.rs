//! Why an operation on a container failed.

use rvm_protocol::ExecId;

use super::{FilterError, LaunchError, SpecError, StateError};
use crate::cgroup::CgroupError;
use crate::process::ProcessError;
use crate::streams::StreamError;

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("exec {0} already exists")]
    ExecExists(ExecId),
    #[error("exec {0} does not exist")]
    NoSuchExec(ExecId),
    #[error("exec {0:?} has not ended")]
    ExecNotFinished(String),
    /// The container's state does not allow the operation.
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}
