//! The creation of a container, from containerd's request to an init process that waits for its
//! start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use rvm_protocol::ContainerId;
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::cgroup::Driver;
use rvm_sandbox::checkpoint::{Image, ImageError};
use rvm_sandbox::config::Config;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::container::start::{Placement, Start, plan_machine, take_network};
use rvm_sandbox::disk::Stack;
use rvm_sandbox::guest::stdio::Relay;
use rvm_sandbox::host::process::ProcessId;
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::network::Namespace;
use rvm_sandbox::sandbox::MachinePlan;
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::spec::pod::Role;
use rvm_sandbox::state::{self, Store};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;
use tokio::sync::{Mutex, watch};

use super::Pod;
use super::container::{Container, Kind};
use super::error::{CreateError, PodError};
use super::execs::Execs;
use super::process::Process;
use super::stale;
use crate::options::Options;
use crate::sandbox_bundle::files;
use crate::stdio::{self, Uris};
use crate::{bundle, rootfs};

/// The directory of the state of containers if the options name none. It has a directory for each
/// of containerd's namespaces.
const STATE_ROOT: &str = "/run/containerd/rvm";

/// What a container is created from.
struct Plan<'a> {
    id: ContainerId,
    kind: Kind,
    dir: &'a Path,
    uris: Uris,
    options: Options,
    /// None for a container that joins a sandbox.
    machine: Option<Box<MachinePlan>>,
    /// What it goes on from.
    image: Option<Arc<Image>>,
}

impl Pod {
    /// Creates a container.
    pub async fn create(
        self: &Arc<Self>,
        id: ContainerId,
        request: &CreateTaskRequest,
        kind: Kind,
    ) -> Result<Arc<Container>, PodError> {
        self.registry.reserve(&id)?;
        match self.mount_and_create(id.clone(), request, kind).await {
            Ok((container, relay)) => {
                let container = Arc::new(container);
                self.registry.insert(Arc::clone(&container));
                self.publish_created(request, &container);
                let init = Arc::clone(&container.init);
                self.watch_exit(&container, init, relay);
                tokio::spawn(pass_signals_on(Arc::clone(&container)));
                Ok(container)
            }
            Err(error) => {
                self.registry.remove(&id);
                Err(error.into())
            }
        }
    }

    async fn mount_and_create(
        &self,
        id: ContainerId,
        request: &CreateTaskRequest,
        kind: Kind,
    ) -> Result<(Container, Relay), CreateError> {
        let mut plan = Plan {
            id,
            kind,
            dir: Path::new(&request.bundle),
            uris: Uris {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
            options: Options::parse(request.options.get_or_default())?,
            machine: None,
            image: None,
        };
        plan.image = image(&plan, &request.checkpoint)?;
        let disks = rootfs::stack(&request.rootfs)?;
        if disks.is_empty() {
            rootfs::mount_all(plan.dir, &request.rootfs)?;
        }
        fault_point!("shim.mounted").map_err(host("mount the root"))?;
        let created = self.create_on_rootfs(&mut plan, disks).await;
        if created.is_err()
            && let Err(error) = rootfs::unmount_all(plan.dir)
        {
            tracing::warn!("{}", chain(&error));
        }
        created
    }

    async fn create_on_rootfs(
        &self,
        plan: &mut Plan<'_>,
        disks: Stack,
    ) -> Result<(Container, Relay), CreateError> {
        let config = plan.options.config_file(plan.dir)?;
        let config = Config::load(config.or_else(|| self.config.clone()).as_deref())?;
        if let Some(shared) = self.shared_files.get()
            && plan.kind == Kind::Task
        {
            let added = files::add(shared, plan.dir);
            added.map_err(host("add the pod's files to the container's"))?;
        }
        let bundle = Bundle::load_with_root(plan.dir, disks)?;
        // Before there is anything of the container that would be left behind.
        plan.machine = plan_machine(
            &plan.id,
            &bundle,
            plan.image.as_ref(),
            &config,
            &mut Timings::default(),
        )
        .await?;
        let root = plan.options.root.clone();
        let root = root.unwrap_or_else(|| PathBuf::from(STATE_ROOT));
        let store = Store::new(root.join(&self.namespace));
        let state = store.root().join(plan.id.as_str());
        let remembered = bundle::remember_state(&bundle.dir, &state);
        remembered.map_err(host("write into the bundle"))?;
        let prepared = stale::prepare(&store, &plan.id, &bundle).await;
        // What is there of that id is another's.
        let prepared = prepared.inspect_err(|_| bundle::forget_state(&bundle.dir));
        let record = Arc::new(prepared?);
        let created = self.start_sandbox(plan, &config, &bundle, &record).await;
        if created.is_err() {
            lifecycle::give_up(&record).await;
        }
        created
    }

    /// Creates a container whose state has been prepared.
    async fn start_sandbox(
        &self,
        plan: &mut Plan<'_>,
        config: &Config,
        bundle: &Bundle,
        record: &Arc<state::Container>,
    ) -> Result<(Container, Relay), CreateError> {
        bundle::copy_address(&bundle.dir, record).map_err(host("copy the socket's address"))?;
        fault_point!("shim.prepared").map_err(host("write into the bundle"))?;
        let outside = Namespace::own().map_err(host("find the host's network namespace"))?;
        let (namespace, placement) = take_network(bundle, plan.machine.take())?;
        let anchor =
            PidAnchor::stand_in(plan.id.as_str()).map_err(host("start the container's process"))?;
        let entered = anchor.enter(&namespace);
        entered.map_err(host("enter the container's network namespace"))?;
        fault_point!("shim.anchored").map_err(host("start the container's process"))?;
        claim(record, &anchor)?;
        fault_point!("shim.claimed").map_err(host("start the container's process"))?;
        let opened = stdio::open(&plan.uris, &plan.id, &self.namespace)?;
        let start = Start {
            container: record,
            bundle,
            config,
            driver: driver(bundle),
            outside: &outside,
            anchor: &anchor,
            is_in_groups: false,
            image: plan.image.as_deref(),
        };
        let placement = match (placement, self.machine.get()) {
            (Placement::Joined, Some(sandbox)) => Placement::Owned(sandbox),
            (placement, _) => placement,
        };
        let mut timings = Timings::default();
        let (place, relay) = start.create(placement, opened.host, &mut timings).await?;
        let owns_sandbox = !matches!(bundle.role, Role::Member(_));
        if owns_sandbox && let Some(sandbox) = place.sandbox() {
            self.machine.own(sandbox, &bundle.role, &self.registry);
            stale::sweep(record.store());
        }
        let init = Process::init(plan.id.clone(), plan.uris.clone(), anchor);
        init.hold_stdin(opened.stdin_writer);
        init.hold_logger(opened.logger);
        let container = Container {
            kind: plan.kind,
            record: Arc::clone(record),
            bundle: bundle.dir.clone(),
            guest: Arc::clone(place.guest()),
            owns_sandbox,
            init: Arc::new(init),
            execs: Execs::default(),
            is_killed: watch::Sender::new(false),
            settling: Mutex::default(),
        };
        Ok((container, relay))
    }

    fn publish_created(&self, request: &CreateTaskRequest, container: &Container) {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            checkpoint: request.checkpoint.clone(),
            pid: container.init.pid(),
            ..Default::default()
        };
        self.registry.publish(container, &event);
    }
}

/// Passes on the signals that somebody sends to the container's pid. SIGKILL is one that ends the
/// process itself.
async fn pass_signals_on(container: Arc<Container>) {
    while let Some(signal) = container.init.next_signal().await {
        signal_init(&container, signal).await;
    }
    if container.init.exit().is_none() {
        tracing::info!("container {} is killed by its pid", container.id());
        signal_init(&container, libc::SIGKILL).await;
    }
}

async fn signal_init(container: &Container, signal: i32) {
    let signalled = container.kill(&container.init, signal.unsigned_abs(), false);
    if let Err(error) = signalled.await {
        tracing::debug!("signal {signal}: {}", chain(&error));
    }
}

/// Opens the checkpoint that a container is to go on from, if there is one.
fn image(plan: &Plan<'_>, path: &str) -> Result<Option<Arc<Image>>, ImageError> {
    let dir = match path {
        "" => plan.options.image_path.as_deref(),
        path => Some(Path::new(path)),
    };
    let image = dir.map(Image::open);
    Ok(image.transpose()?.map(Arc::new))
}

fn host(action: &'static str) -> impl FnOnce(std::io::Error) -> CreateError {
    move |source| CreateError::Host { action, source }
}

/// Writes into the state that this process answers for the container.
fn claim(record: &state::Container, anchor: &PidAnchor) -> Result<(), CreateError> {
    let own = ProcessId::own().map_err(host("find out the own pid"))?;
    let locked = record.lock()?;
    locked.claim(own)?;
    let mut state = locked.load()?;
    state.anchor_pid = Some(anchor.pid());
    Ok(locked.save(&state)?)
}

/// The cgroup driver. The form of the path tells it, so that containerd's configuration need not.
fn driver(bundle: &Bundle) -> Driver {
    let linux = bundle.spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    match path.and_then(Path::to_str) {
        Some(path) if path.contains(".slice:") => Driver::Systemd,
        _ => Driver::Cgroupfs,
    }
}
