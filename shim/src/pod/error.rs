//! Failures of requests about containers and their processes.

use std::io;

use rvm_protocol::{ContainerId, ExecId};
use rvm_sandbox::checkpoint::ImageError;
use rvm_sandbox::config::ConfigError;
use rvm_sandbox::container::lifecycle::LifecycleError;
use rvm_sandbox::container::start::StartError;
use rvm_sandbox::container::update::UpdateError;
use rvm_sandbox::guest::agent::AgentError;
use rvm_sandbox::guest::stdio::StdioError;
use rvm_sandbox::network::NetworkError;
use rvm_sandbox::spec::SpecError;
use rvm_sandbox::state::{StateError, Status};

use crate::options::OptionsError;
use crate::rootfs::{DiskMountError, RootfsError};
use crate::stdio::OpenError;

/// A request that the container or process cannot meet in its state. The words of the first ones
/// are those of runc's shim.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("container {0} not created")]
    NoContainer(ContainerId),
    #[error("process {0} does not exist")]
    NoProcess(ExecId),
    #[error("process already finished")]
    Finished,
    #[error("container {0} already exists")]
    ContainerExists(ContainerId),
    #[error("process {0} already exists")]
    ProcessExists(ExecId),
    #[error("container {0} is not running")]
    NotRunning(ContainerId),
    #[error("cannot delete container {id}: it is {status}")]
    NotStopped { id: ContainerId, status: Status },
    #[error("cannot resize a stopped container")]
    ResizeStopped,
    #[error("process not started")]
    ExecNotStarted,
    #[error("process already started")]
    ExecStarted,
    #[error("cannot delete a running process")]
    ExecRunning,
    #[error("container {0} has no cgroup")]
    NoCgroup(ContainerId),
    #[error("unknown signal {0}")]
    UnknownSignal(u32),
}

/// A container could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Disks(#[from] DiskMountError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Streams(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Checkpoint(#[from] ImageError),
    #[error("cannot {action}")]
    Host {
        action: &'static str,
        source: io::Error,
    },
}

/// A request about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Streams(#[from] OpenError),
    #[error(transparent)]
    Relay(#[from] StdioError),
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    #[error(transparent)]
    Update(#[from] UpdateError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}
