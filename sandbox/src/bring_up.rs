//! From a bundle to a container whose first process waits to be started: what monitor and shim do
//! alike.
//!
//! ```text
//!   create hooks ──> share files ──┬─> start a sandbox ─┬──> create in the guest
//!                                  └──> or join one ────┘
//! ```

use std::sync::Arc;

use crate::agent::AgentError;
use crate::cgroup::{self, CgroupError, Driver};
use crate::config::Config;
use crate::hooks::{self, HookError, Moment};
use crate::sandbox::{Sandbox, SandboxError};
use crate::sizing::{Size, SizeError};
use crate::spec::pod::Role;
use crate::spec::translate::translate;
use crate::spec::{Bundle, SpecError};
use crate::state::{Container, StateError, Status};
use crate::stdio::{HostStdio, Relay};
use crate::storage::{self, StorageError};
use crate::timings::Timings;

/// A container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Limits that no machine has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The shared directory.
    #[error("cannot share the container's files")]
    Storage(#[from] StorageError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What the agent refused.
    #[error("{0}")]
    Container(String),
}

impl From<AgentError> for BringUpError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Refused(message) | AgentError::NotFound(message) => {
                Self::Container(message)
            }
            other => Self::Sandbox(other.into()),
        }
    }
}

/// What is to be made.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The container, whose state is `Creating`.
    pub container: &'a Container,
    /// What it is made of.
    pub bundle: &'a Bundle,
    /// rvm's configuration.
    pub config: &'a Config,
    /// Who makes its control groups.
    pub driver: Driver,
}

impl Site<'_> {
    /// Makes the container. One that joins a sandbox is given it if this process owns it.
    pub async fn bring_up(
        &self,
        owned: Option<Arc<Sandbox>>,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, Relay), BringUpError> {
        self.run_create_hooks(timings).await?;
        let (container, bundle, config) = (self.container, self.bundle, self.config);
        let dir = container.sandbox(&container.state()?)?;
        let peers = match &bundle.role {
            Role::Alone | Role::Sandbox => {
                storage::prepare(dir.path())?;
                Vec::new()
            }
            Role::Member(id) => container.store().peers(id)?,
        };
        let translation = translate(bundle, container.id(), &peers)?;
        dir.share(container.id(), &translation)?;
        timings.lap("share files");
        let sandbox = match (&bundle.role, owned) {
            (Role::Alone | Role::Sandbox, _) => {
                let size = Size::for_bundle(&bundle.spec, config)?;
                Arc::new(Sandbox::start(dir, size, config, timings).await?)
            }
            (Role::Member(_), Some(owned)) => owned,
            (Role::Member(_), None) => Arc::new(Sandbox::join(dir, config)?),
        };
        self.limit(&sandbox)?;
        let created = sandbox.create_container(container.id(), &translation.spec, host, timings);
        let (relay, pid) = created.await.map_err(plain)?;
        container
            .lock()?
            .step(Status::Created, |state| state.guest_pid = Some(pid))?;
        Ok((sandbox, relay))
    }

    /// Holds the processes that run the machine to the container's limits. A program that is not in
    /// the container's groups itself has them made for the machine.
    fn limit(&self, sandbox: &Sandbox) -> Result<(), BringUpError> {
        let (container, bundle) = (self.container, self.bundle);
        if container.state()?.cgroup.is_none() && !matches!(bundle.role, Role::Member(_)) {
            let machine: Vec<i32> = sandbox.record().machine.iter().map(|id| id.pid).collect();
            cgroup::enter(container, bundle, self.driver, &machine)?;
        }
        Ok(cgroup::limit(container, bundle, sandbox.record().engine)?)
    }

    /// Lets the container's first process execute its program.
    pub async fn start(
        &self,
        sandbox: &Sandbox,
        timings: &mut Timings,
    ) -> Result<(), BringUpError> {
        let started = sandbox.start_container(self.container.id(), timings);
        started.await.map_err(plain)?;
        let state = self.container.lock()?.step(Status::Running, |_| {})?;
        hooks::run_and_warn(Moment::Poststart, state.hooks.as_ref(), &state).await;
        Ok(())
    }

    /// The hooks that prepare the container from outside: what they do to the namespaces of the
    /// reported pid, which are this process's, is there when the machine is made.
    async fn run_create_hooks(&self, timings: &mut Timings) -> Result<(), BringUpError> {
        let state = self.container.state()?;
        let Some(hooks) = &state.hooks else {
            return Ok(());
        };
        for moment in [Moment::Prestart, Moment::CreateRuntime] {
            hooks::run(moment, Some(hooks), &state).await?;
        }
        timings.lap("run hooks");
        Ok(())
    }
}

/// What the agent refused is the container's fault, and is told without the machine around it.
fn plain(error: SandboxError) -> BringUpError {
    match error {
        SandboxError::Agent(error) => error.into(),
        other => other.into(),
    }
}
