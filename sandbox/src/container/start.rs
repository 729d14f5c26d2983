//! From a bundle to a container whose first process waits to be started: what monitor and shim do
//! alike.
//!
//! ```text
//!   create hooks ──> share files ──┬─> start a sandbox ─┬──> create in the guest
//!                                  └──> or join one ────┘
//! ```

use std::io;
use std::sync::Arc;

use super::cgroup::{self, ContainerCgroupError};
use crate::anchor::StandIn;
use crate::anchor::rootfs_view::{View, ViewError};
use crate::anchor::synthetic_proc;
use crate::cgroup::Driver;
use crate::config::Config;
use crate::guest::agent::AgentError;
use crate::guest::stdio::{HostStdio, Relay};
use crate::hooks::{self, HookError, Moment};
use crate::host::timings::Timings;
use crate::network::{Namespace, Network, NetworkError, Wanted};
use crate::sandbox::volumes::{VolumeError, Volumes};
use crate::sandbox::{Sandbox, SandboxError};
use crate::share::{self, StorageError};
use crate::sizing::{Size, SizeError};
use crate::spec::pod::Role;
use crate::spec::translate::translate;
use crate::spec::{Bundle, SpecError};
use crate::state::{Container, StateError, Status};

/// A container could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// State.
    #[error(transparent)]
    State(#[from] StateError),
    /// A pod without a first container.
    #[error(
        "there is no sandbox {0}: rvm must run the first container of a pod, too; CRI-O has it do so \
         with drop_infra_ctr = false"
    )]
    NoSandbox(String),
    /// The configuration.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Limits that no machine has.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The shared directory.
    #[error("cannot share the container's files")]
    Storage(#[from] StorageError),
    /// What the host's tools find behind the container's pid.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The thread whose number is the container's pid.
    #[error("cannot have a thread stand for the container")]
    StandIn(#[source] io::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The control groups.
    #[error(transparent)]
    Cgroup(#[from] ContainerCgroupError),
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
    /// The host's network namespace, where hooks run.
    pub outside: &'a Namespace,
    /// Whose number is the container's pid.
    pub stand_in: &'a StandIn,
}

/// Opens or makes the network namespace that a container is to be in. Whatever has its pid on the
/// host must enter it before anything else happens: engines look for it there.
///
/// The network is for [`Site::bring_up`], of a container that gets a sandbox.
pub fn take_network(bundle: &Bundle) -> Result<(Namespace, Option<Network>), NetworkError> {
    // The configuration was found to ask for one.
    let wanted = Wanted::of(&bundle.spec).unwrap_or(Wanted::New);
    if let Role::Member(_) = bundle.role {
        return Ok((Namespace::take(&wanted)?, None));
    }
    let network = Network::take(&wanted)?;
    Ok((network.namespace()?, Some(network)))
}

impl Site<'_> {
    /// Makes the container. One that joins a sandbox is given it if this process owns it; one that
    /// does not is given the network of its own, see [`take_network`].
    pub async fn bring_up(
        &self,
        owned: Option<Arc<Sandbox>>,
        network: Option<Network>,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<(Arc<Sandbox>, Relay), BringUpError> {
        self.run_create_hooks(timings).await?;
        let (container, bundle, config) = (self.container, self.bundle, self.config);
        let dir = match container.sandbox(&container.state()?) {
            Err(StateError::NotFound(id)) => return Err(BringUpError::NoSandbox(id)),
            found => found?,
        };
        let peers = match &bundle.role {
            Role::Alone | Role::Sandbox => {
                share::prepare(dir.path())?;
                Vec::new()
            }
            Role::Member(id) => container.store().peers(id)?,
        };
        let translation = translate(bundle, container.id(), &peers)?;
        dir.share(container.id(), &translation.mounts, &translation.spec)?;
        timings.lap("share files");
        let sandbox = match (network, owned) {
            (Some(network), _) => {
                let size = Size::for_bundle(&bundle.spec, config)?;
                let sandbox = Sandbox::start(dir, size, network, config, timings).await?;
                self.enter_groups(&sandbox)?;
                sandbox.come_up(timings).await?;
                Arc::new(sandbox)
            }
            (None, Some(owned)) => owned,
            (None, None) => Arc::new(Sandbox::join(dir, config)?),
        };
        if !matches!(bundle.role, Role::Member(_)) {
            self.set_oom_score(&sandbox);
        }
        cgroup::limit(container, bundle, sandbox.record().engine)?;
        sandbox.find_names_for(&bundle.spec).await?;
        let volumes = Volumes::send(container.id(), translation.volumes, &sandbox).await?;
        let created = sandbox.create_container(container.id(), &translation.spec, host, timings);
        let (relay, pid) = created.await.map_err(plain)?;
        let view = View::of(&translation.spec, &sandbox.dir().shared(), container.id());
        let shown = self.stand_in.have(move || view.enter());
        let shown = shown.map_err(BringUpError::StandIn)??;
        if let Some(processes) = shown
            && synthetic_proc::are_looked_for(&bundle.spec)
        {
            synthetic_proc::show(processes, container.id(), &sandbox, self.stand_in.left());
        }
        if let Some(volumes) = volumes {
            volumes.follow(Arc::clone(&sandbox));
        }
        container
            .lock()?
            .step(Status::Created, |state| state.guest_pid = Some(pid))?;
        Ok((sandbox, relay))
    }

    /// Puts the processes that run the machine into the container's groups, where this program is not in
    /// them itself: before the guest boots, because what a process has used is never moved with it.
    fn enter_groups(&self, sandbox: &Sandbox) -> Result<(), BringUpError> {
        if self.container.state()?.cgroup.is_none() {
            let machine: Vec<i32> = sandbox.record().machine.iter().map(|id| id.pid).collect();
            cgroup::enter(self.container, self.bundle, self.driver, &machine)?;
        }
        Ok(())
    }

    /// Has the host's OOM killer treat the machine as it would treat the container.
    fn set_oom_score(&self, sandbox: &Sandbox) {
        let process = self.bundle.spec.process().as_ref();
        let Some(score) = process.and_then(|process| process.oom_score_adj()) else {
            return;
        };
        for machine in &sandbox.record().machine {
            let path = format!("/proc/{}/oom_score_adj", machine.pid);
            // Without it the container runs all the same.
            if let Err(error) = std::fs::write(&path, score.to_string()) {
                tracing::warn!("process.oomScoreAdj: cannot write {score} to {path}: {error}");
            }
        }
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
        let (hooks, outside) = (state.hooks.as_ref(), Some(self.outside));
        hooks::run_and_warn(Moment::Poststart, hooks, &state, outside).await;
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
            hooks::run(moment, Some(hooks), &state, self.outside).await?;
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
