//! The start of a container, from its bundle to an init process that waits to execute the program.
//! The monitor and the shim both start containers with this.
//!
//! ```text
//!   create hooks ──> share files ──┬─> start a sandbox ─┬──> create in the guest
//!                                  └──> or join one ────┘
//! ```

use std::io;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use rvm_protocol::ContainerId;
use rvm_protocol::failure::{Code, Failure};

use super::cgroup::{self, ContainerCgroupError};
use super::restore::check_restorable;
use crate::anchor::PidAnchor;
use crate::anchor::rootfs_view::RootfsView;
use crate::anchor::synthetic_proc;
use crate::cgroup::{Cgroup, Driver};
use crate::checkpoint::Image;
use crate::config::Config;
use crate::control::ControlError;
use crate::dir::SandboxDir;
use crate::disk::Stack;
use crate::guest::agent::AgentError;
use crate::guest::stdio::{HostStdio, Relay};
use crate::hooks::{self, HookError, HookPoint};
use crate::host::memory_policy::MemoryPolicy;
use crate::host::timings::Timings;
use crate::network::{Namespace, NamespaceSource, Network, NetworkError};
use crate::sandbox::disks::{self, DiskError};
use crate::sandbox::{
    CheckpointError, Guest, MachinePlan, PlanError, Requirements, Sandbox, SandboxError,
    VolumeError, Volumes,
};
use crate::share::{self, StorageError};
use crate::sizing::SizeError;
use crate::spec::pod::Role;
use crate::spec::translate::{Translation, translate};
use crate::spec::validate::FieldError;
use crate::spec::{Bundle, SpecError};
use crate::state::{Container, StateError, Status};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;

/// A container could not be created or started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Reading or writing the container's state failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The container belongs to a pod whose sandbox rvm did not start. With the sandbox's id.
    #[error(
        "there is no sandbox {0}: rvm must run the first container of a pod, too; CRI-O has it do so \
         with drop_infra_ctr = false"
    )]
    NoSandbox(ContainerId),
    /// The configuration cannot be translated.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The limits ask for a machine that rvm cannot make.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Mounting the container's files in the shared directory failed.
    #[error("cannot share the container's files")]
    Storage(#[from] StorageError),
    /// The mount namespace behind the container's pid could not be made.
    #[error("cannot show the container's files to the host's tools")]
    RootfsView(#[source] StorageError),
    /// The thread or process that has the container's pid has ended.
    #[error("cannot show the container's files behind its pid")]
    PidAnchor(#[source] io::Error),
    /// The container's network namespace cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The sandbox did not start, or its guest failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A volume could not be copied into the guest.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A disk could not be given to the machine.
    #[error(transparent)]
    Disk(DiskError),
    /// The container's control groups could not be made or limited.
    #[error(transparent)]
    Cgroup(#[from] ContainerCgroupError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container could not go on from its checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The sandbox's owner did not let the container go on from its checkpoint.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent refused the container, for a reason that concerns the container alone.
    #[error(transparent)]
    Container(Failure),
}

impl From<AgentError> for StartError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Refused(failure) => Self::Container(failure),
            AgentError::NotFound(message) => Self::Container(Failure::new(Code::NotFound, message)),
            other => Self::Sandbox(other.into()),
        }
    }
}

impl From<PlanError> for StartError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Size(error) => Self::Size(error),
            PlanError::Sandbox(error) => Self::Sandbox(error),
        }
    }
}

impl From<DiskError> for StartError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Guest(error) => plain(error),
            other => Self::Disk(other),
        }
    }
}

/// Where a container is to run.
pub enum Placement {
    /// In a sandbox of its own: such a machine, with this network.
    New(Box<MachinePlan>, Network),
    /// In a sandbox that this process owns.
    Owned(Arc<Sandbox>),
    /// In a sandbox that another process owns.
    Joined,
}

/// Where a container was created.
pub enum Place {
    /// In a sandbox that this process owns.
    Owned(Arc<Sandbox>),
    /// In a sandbox that another process owns.
    Joined(Arc<Guest>),
}

impl Place {
    /// The guest that the container is in.
    pub fn guest(&self) -> &Arc<Guest> {
        match self {
            Self::Owned(sandbox) => sandbox.guest(),
            Self::Joined(guest) => guest,
        }
    }

    /// The sandbox, if this process owns it.
    pub fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        match self {
            Self::Owned(sandbox) => Some(sandbox),
            Self::Joined(_) => None,
        }
    }
}

/// The start of a container, for the process that stands for it on the host.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The container, whose state is `Creating`.
    pub container: &'a Container,
    /// Its bundle, checked.
    pub bundle: &'a Bundle,
    /// rvm's configuration.
    pub config: &'a Config,
    /// Who makes its control groups.
    pub driver: Driver,
    /// The host's network namespace, where hooks run.
    pub outside: &'a Namespace,
    /// What has the container's pid.
    pub anchor: &'a PidAnchor,
    /// Whether this process is in the container's control groups, and so what it starts.
    pub is_in_groups: bool,
    /// What the container goes on from when it is started.
    pub image: Option<&'a Image>,
}

/// Finds out what machine a container is to have of its own, and makes the machine's template if it
/// is to have one; none for a member of a pod. Called before this process enters the container's
/// control groups.
pub async fn plan_machine(
    id: &ContainerId,
    bundle: &Bundle,
    image: Option<&Arc<Image>>,
    config: &Config,
    timings: &mut Timings,
) -> Result<Option<Box<MachinePlan>>, StartError> {
    if let Some(image) = image {
        check_restorable(id, bundle, image)?;
        if matches!(bundle.role, Role::Member(_)) {
            return Ok(None);
        }
        let plan = MachinePlan::of_checkpoint(Arc::clone(image), bundle.rates, config)?;
        return Ok(Some(Box::new(plan)));
    }
    let max_disks = match bundle.role {
        Role::Alone => bundle.disk_count(),
        // Its members come later, with theirs.
        Role::Sandbox => usize::MAX,
        Role::Member(_) => return Ok(None),
    };
    let asked = (&bundle.spec, bundle.rates);
    let plan = MachinePlan::new(asked, bundle.hardware, max_disks, config, timings);
    Ok(Some(Box::new(plan.await?)))
}

/// Opens or makes the network namespace that a container is to be in, and says where the container
/// is to run: on the machine that was planned, or [`Placement::Joined`]. The thread whose number is
/// the container's pid must enter the namespace before anything else happens: engines look for it
/// there.
pub fn take_network(
    bundle: &Bundle,
    plan: Option<Box<MachinePlan>>,
) -> Result<(Namespace, Placement), NetworkError> {
    // Reading the bundle has made sure that it asks for one.
    let wanted = NamespaceSource::of(&bundle.spec).unwrap_or(NamespaceSource::New);
    let Some(plan) = plan else {
        return Ok((Namespace::create_or_open(&wanted)?, Placement::Joined));
    };
    let mut network = Network::open(&wanted)?;
    let linux = bundle.spec.linux().as_ref();
    if let Some(devices) = linux.and_then(|linux| linux.net_devices().as_ref()) {
        network.take_devices(devices)?;
    }
    Ok((network.namespace()?, Placement::New(plan, network)))
}

impl Start<'_> {
    /// Creates the container, whose init process then waits for [`Self::start`].
    pub async fn create(
        &self,
        placement: Placement,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<(Place, Relay), StartError> {
        let group = self.make_groups()?;
        self.run_create_hooks(timings).await?;
        let (dir, translation) = self.share_files(timings)?;
        fault_point!("start.shared").map_err(SandboxError::Record)?;
        let files = (dir, &translation.disks);
        let place = self.place(placement, files, group.as_ref(), timings);
        let place = place.await?;
        fault_point!("start.placed").map_err(SandboxError::Record)?;
        let guest = place.guest();
        let engine = guest.record().engine;
        cgroup::limit(self.container, self.bundle, self.saved(), engine)?;
        if let Some(sandbox) = place.sandbox() {
            sandbox.relay_dns_of(&self.bundle.spec).await?;
        }
        let id = self.container.id();
        fault_point!("start.limited").map_err(SandboxError::Record)?;
        let owned = place.sandbox().map(Arc::as_ref);
        if let Some(saved) = self.saved() {
            let relay = self.adopt(saved, &place, translation, host).await?;
            timings.lap("connect the container");
            return Ok((place, relay));
        }
        disks::attach(id, &translation.disks, guest, owned, timings).await?;
        let created = self.create_in(guest, translation, host, timings).await;
        match (&created, owned) {
            (Err(_), _) => disks::give_up(id, guest, owned).await,
            (Ok(_), Some(sandbox)) => sandbox.has_container(),
            (Ok(_), None) => {}
        }
        Ok((place, created?))
    }

    /// Creates the container in its guest, which has its disks.
    async fn create_in(
        &self,
        guest: &Arc<Guest>,
        translation: Translation,
        host: HostStdio,
        timings: &mut Timings,
    ) -> Result<Relay, StartError> {
        let id = self.container.id();
        let volumes = Volumes::send(id, translation.volumes, guest).await?;
        let created = guest.create_container(id, &translation.spec, host, timings);
        let (relay, pid, streams) = created.await.map_err(plain)?;
        fault_point!("start.created").map_err(SandboxError::Record)?;
        self.show(&translation.spec, guest)?;
        if let Some(volumes) = volumes {
            volumes.follow(Arc::clone(guest));
        }
        self.container.lock()?.step(Status::Created, |state| {
            state.guest_pid = Some(pid);
            state.streams = Some(streams);
        })?;
        Ok(relay)
    }

    /// Makes the container's files visible to the guest of its sandbox, in the sandbox's directory.
    fn share_files(&self, timings: &mut Timings) -> Result<(SandboxDir, Translation), StartError> {
        let container = self.container;
        let state = container.state()?;
        let dir = match container.sandbox(&state) {
            Err(StateError::NotFound(id)) => return Err(StartError::NoSandbox(id)),
            found => found?,
        };
        let peers = match &self.bundle.role {
            Role::Alone | Role::Sandbox => {
                share::prepare(dir.path())?;
                Vec::new()
            }
            Role::Member(_) => match &state.sandbox {
                Some(sandbox) => container.store().peers(sandbox)?,
                None => Vec::new(),
            },
        };
        let id = self.guest_id().as_str();
        let translation = translate(self.bundle, id, &peers)?;
        self.check_files(&translation)?;
        dir.share(id, &translation.mounts, &translation.spec)?;
        if self.bundle.disks.top().is_some() {
            share::make_empty_root(&dir.shared(), id)?;
        }
        timings.lap("share files");
        Ok((dir, translation))
    }

    /// The id by which the guest knows the container, and the name of its files in the shared
    /// directory: the one it was first created with.
    fn guest_id(&self) -> &ContainerId {
        self.saved().map_or(self.container.id(), |saved| &saved.id)
    }

    /// Starts the sandbox that the container is to have, in these control groups, or finds it.
    async fn place(
        &self,
        placement: Placement,
        (dir, stack): (SandboxDir, &Stack),
        group: Option<&Cgroup>,
        timings: &mut Timings,
    ) -> Result<Place, StartError> {
        let (plan, network) = match placement {
            Placement::New(plan, network) => (*plan, network),
            Placement::Owned(sandbox) => return Ok(Place::Owned(sandbox)),
            Placement::Joined => {
                return Ok(Place::Joined(Arc::new(Guest::join(dir, self.config)?)));
            }
        };
        let guest_id = self.guest_id();
        if guest_id != self.container.id() {
            dir.set_alias(guest_id).map_err(SandboxError::Record)?;
        }
        let policy = self.memory_policy()?;
        let disks = match self.image {
            Some(image) => disks::reopen(stack, &image.manifest.container.disks)?,
            None => Vec::new(),
        };
        let wanted = Requirements {
            plan,
            memory_policy: policy.as_ref(),
            group,
            network,
            disks,
        };
        let mut sandbox = Sandbox::start(dir, wanted, self.config, timings).await?;
        sandbox.boot(timings).await?;
        self.set_oom_score(sandbox.guest());
        Ok(Place::Owned(Arc::new(sandbox)))
    }

    /// The memory policy of the machine, which the host's kernel must take.
    fn memory_policy(&self) -> Result<Option<MemoryPolicy>, SpecError> {
        let linux = self.bundle.spec.linux().as_ref();
        let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) else {
            return Ok(None);
        };
        let field = "linux.memoryPolicy";
        let error = |field: String, reason| self.bundle.field_error(FieldError { field, reason });
        let policy = MemoryPolicy::of(policy)
            .map_err(|(member, reason)| error(format!("{field}.{member}"), reason))?;
        let taken = policy.during(|| ());
        let reason = |source: io::Error| format!("is refused by the host's kernel: {source}");
        taken.map_err(|source| error(field.to_owned(), reason(source)))?;
        Ok(Some(policy))
    }

    /// Sets up the rootfs view and the synthetic proc behind the container's pid.
    pub(super) fn show(&self, spec: &Spec, guest: &Arc<Guest>) -> Result<(), StartError> {
        let id = self.container.id();
        let view = RootfsView::of(spec, &guest.dir().shared(), self.guest_id().as_str());
        let proc = fault_point!("start.show").and_then(|()| self.anchor.show(view));
        let proc = proc.map_err(StartError::PidAnchor)?;
        let proc = proc.map_err(StartError::RootfsView)?;
        if let Some(proc) = proc
            && synthetic_proc::is_needed(&self.bundle.spec)
        {
            synthetic_proc::serve(proc, id, guest, self.anchor.left_rootfs());
        }
        Ok(())
    }

    /// Makes the container's groups, unless this process is in them, and moves the process into
    /// them that has the container's pid and nothing else to do. The machine's processes start in
    /// them.
    fn make_groups(&self) -> Result<Option<Cgroup>, StartError> {
        if self.is_in_groups {
            return Ok(None);
        }
        let anchor = self.anchor.is_process().then(|| self.anchor.pid());
        let processes = anchor.as_slice();
        let group = cgroup::enter(self.container, self.bundle, self.driver, processes)?;
        Ok(Some(group))
    }

    /// Has the host's OOM killer treat the machine as it would treat the container.
    fn set_oom_score(&self, guest: &Guest) {
        let process = self.bundle.spec.process().as_ref();
        let Some(score) = process.and_then(|process| process.oom_score_adj()) else {
            return;
        };
        for machine in &guest.record().machine {
            let path = format!("/proc/{}/oom_score_adj", machine.pid);
            // Without it the container runs all the same.
            if let Err(error) = std::fs::write(&path, score.to_string()) {
                tracing::warn!("process.oomScoreAdj: cannot write {score} to {path}: {error}");
            }
        }
    }

    /// Lets the container's init process execute its program, or the container go on from its
    /// image.
    pub async fn start(&self, guest: &Guest, timings: &mut Timings) -> Result<(), StartError> {
        let started = guest.start_container(self.container.id(), timings);
        started.await.map_err(plain)?;
        fault_point!("start.started").map_err(SandboxError::Record)?;
        let state = self.container.lock()?.step(Status::Running, |_| {})?;
        let done = hooks::run_poststart(&state, Some(self.outside)).await;
        if done.is_err() {
            // A machine of its own ends with this process, another's does not.
            let init = self.container.init();
            if let Err(error) = guest.agent().signal(&init, libc::SIGKILL).await {
                tracing::warn!("cannot kill the container: {}", chain(&error));
            }
        }
        Ok(done?)
    }

    /// The hooks that prepare the container from outside: what they do to the namespaces of the
    /// reported pid, which are this process's, is there when the machine is made.
    async fn run_create_hooks(&self, timings: &mut Timings) -> Result<(), StartError> {
        let state = self.container.state()?;
        let Some(hooks) = &state.hooks else {
            return Ok(());
        };
        for point in [HookPoint::Prestart, HookPoint::CreateRuntime] {
            hooks::run(point, Some(hooks), &state, Some(self.outside)).await?;
        }
        timings.lap("run hooks");
        Ok(())
    }
}

/// What the agent refused is the container's fault, and is told without the machine around it.
fn plain(error: SandboxError) -> StartError {
    match error {
        SandboxError::Agent(error) => error.into(),
        other => other.into(),
    }
}
