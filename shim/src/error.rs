//! What a request may fail with, and the one place where that becomes a code of ttrpc's. containerd
//! acts on some of them: what is not found is taken to be gone already.

use rvm_sandbox::config::ConfigError;
use rvm_sandbox::container::lifecycle::LifecycleError;
use rvm_sandbox::container::start::StartError;
use rvm_sandbox::container::update::UpdateError;
use rvm_sandbox::guest::agent::AgentError;
use rvm_sandbox::guest::stdio::StdioError;
use rvm_sandbox::network::NetworkError;
use rvm_sandbox::spec::SpecError;
use rvm_sandbox::state::StateError;
pub use rvm_sys::error_chain::chain;
use ttrpc::Code;

use crate::options::OptionsError;
use crate::rootfs::RootfsError;
use crate::stdio::OpenError;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// There is no such container, process or sandbox.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} already exists")]
    Exists(String),
    /// Not now.
    #[error("{0}")]
    Unfit(String),
    /// Never.
    #[error("{0}")]
    Invalid(String),
    /// Not by this runtime.
    #[error("{0} is not implemented by rvm")]
    Unimplemented(&'static str),
    /// The runtime's options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// rvm's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The bundle.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A stream's host end.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A stream's way to the guest.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The container's creation.
    #[error(transparent)]
    BringUp(#[from] StartError),
    /// What was done to it later.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// The change of its limits.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A thread or a file of the shim's own.
    #[error("cannot {action}")]
    Own {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl ShimError {
    /// There is no container with this id.
    pub fn no_container(id: &str) -> Self {
        Self::NotFound(format!("container {id} not created"))
    }

    /// The container has no such process.
    pub fn no_process(id: &str) -> Self {
        Self::NotFound(format!("process {id} does not exist"))
    }

    /// The process has ended. The words are runc's.
    pub fn finished() -> Self {
        Self::NotFound("process already finished".to_owned())
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Unfit(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) | Self::Options(_) | Self::Spec(_) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::BringUp(error) => match error {
                StartError::Spec(_) | StartError::Size(_) => Code::INVALID_ARGUMENT,
                StartError::State(error) => state_code(error),
                _ => Code::UNKNOWN,
            },
            Self::Lifecycle(error) | Self::Update(UpdateError::Container(error)) => {
                lifecycle_code(error)
            }
            Self::Config(_)
            | Self::Update(_)
            | Self::Network(_)
            | Self::Rootfs(_)
            | Self::Open(_)
            | Self::Stdio(_)
            | Self::Own { .. } => Code::UNKNOWN,
        }
    }
}

fn lifecycle_code(error: &LifecycleError) -> Code {
    match error {
        LifecycleError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
        LifecycleError::State(error) => state_code(error),
        LifecycleError::Agent(error) => agent_code(error),
        _ => Code::UNKNOWN,
    }
}

fn state_code(error: &StateError) -> Code {
    match error {
        StateError::Id(_) => Code::INVALID_ARGUMENT,
        StateError::Exists(_) => Code::ALREADY_EXISTS,
        StateError::NotFound(_) => Code::NOT_FOUND,
        StateError::Step(_) => Code::FAILED_PRECONDITION,
        _ => Code::UNKNOWN,
    }
}

fn agent_code(error: &AgentError) -> Code {
    match error {
        AgentError::NotFound(_) => Code::NOT_FOUND,
        AgentError::Connect(_) | AgentError::Lost { .. } => Code::UNAVAILABLE,
        _ => Code::UNKNOWN,
    }
}

impl From<AgentError> for ShimError {
    fn from(error: AgentError) -> Self {
        Self::Lifecycle(error.into())
    }
}

impl From<StateError> for ShimError {
    fn from(error: StateError) -> Self {
        Self::Lifecycle(error.into())
    }
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_is_told_what_is_gone_and_what_is_taken() {
        let code = |error: ShimError| match ttrpc::Error::from(error) {
            ttrpc::Error::RpcStatus(status) => status.code(),
            _ => Code::OK,
        };
        assert_eq!(code(ShimError::no_container("a")), Code::NOT_FOUND);
        assert_eq!(
            code(ShimError::Exists("a".to_owned())),
            Code::ALREADY_EXISTS
        );
        let gone = AgentError::NotFound("no such process".to_owned());
        assert_eq!(code(gone.into()), Code::NOT_FOUND);
        let taken = StateError::Exists("a".parse().unwrap());
        assert_eq!(code(taken.into()), Code::ALREADY_EXISTS);
    }
}
