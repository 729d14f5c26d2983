//! What a shim holds: one machine and the containers in it.
//!
//! ```text
//!   create ──> created ──> started ──> ended ──> deleted
//!                 └───────────────────────^
//! ```
//!
//! Of every process the end is told last: of a container's processes the first one's, and of all
//! that is told of a process its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskIO, TaskStart};
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::cgroup::Driver;
use rvm_sandbox::config::Config;
use rvm_sandbox::container::lifecycle;
use rvm_sandbox::container::start::{Place, Placement, Start, take_network};
use rvm_sandbox::host::timings::Timings;
use rvm_sandbox::network::Namespace;
use rvm_sandbox::sandbox::Sandbox;
use rvm_sandbox::spec::Bundle;
use rvm_sandbox::spec::pod::Role;
use rvm_sandbox::state::{self, Status, Store};
use tokio::sync::Notify;

use crate::container::{Container, Execs, Output, claim, remember_state, stopped};
use crate::error::{ShimError, chain};
use crate::events::{Event, Publisher};
use crate::flags::Flags;
use crate::machine;
use crate::options::Options;
use crate::process::{Ended, Process};
use crate::remains;
use crate::rootfs;
use crate::sandbox_files;
use crate::stdio::{self, Uris};

/// Where the state of containers is, if the options do not say: a directory for each namespace.
pub const ROOT: &str = "/run/containerd/rvm";

/// How long the end of a process waits for its output to be read. Whoever holds on to the output,
/// or does not read it, gets the rest later.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a machine may take to end its containers and write back their files.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// What containerd is told of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Everything.
    All,
    /// Nothing: it is none of containerd's tasks.
    Nothing,
}

/// A machine and its containers.
pub struct Pod {
    namespace: String,
    config: Option<PathBuf>,
    /// What containerd is told.
    pub events: Publisher,
    /// Containerd needs this shim no more.
    pub done: Notify,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Slot>>,
    /// Files for all containers, where containerd leaves them to the shim.
    files: OnceLock<PathBuf>,
}

enum Slot {
    /// Its id is taken.
    Creating,
    Present(Arc<Container>),
}

impl Pod {
    /// An empty one.
    pub fn new(flags: &Flags, events: Publisher) -> Self {
        Self {
            namespace: flags.namespace.clone(),
            config: flags.config.clone(),
            events,
            done: Notify::new(),
            sandbox: Mutex::new(None),
            containers: Mutex::default(),
            files: OnceLock::new(),
        }
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self) -> MutexGuard<'_, Option<Arc<Sandbox>>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a machine that nobody has asked to end.
    pub fn has_sandbox(&self) -> bool {
        self.sandbox().is_some()
    }

    /// From now on containers get the files in a directory; see [`sandbox_files`].
    pub fn give_files(&self, dir: PathBuf) {
        // There is one sandbox, and it is made once.
        let _ = self.files.set(dir);
    }

    /// Finds a container.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, ShimError> {
        match self.containers().get(id) {
            Some(Slot::Present(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating) | None => Err(ShimError::no_container(id)),
        }
    }

    /// Whether there is no container.
    pub fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    /// Makes a container.
    pub async fn create(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        announce: Announce,
    ) -> Result<Arc<Container>, ShimError> {
        if !request.checkpoint.is_empty() {
            return Err(ShimError::Unimplemented("restoring a checkpoint"));
        }
        match self.containers().entry(request.id.clone()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                return Err(ShimError::Exists(format!("container {}", request.id)));
            }
            std::collections::btree_map::Entry::Vacant(slot) => slot.insert(Slot::Creating),
        };
        match self.mount_and_make(request, announce).await {
            Ok((container, output)) => {
                let present = Slot::Present(Arc::clone(&container));
                self.containers().insert(request.id.clone(), present);
                self.tell_created(request, &container);
                let init = Arc::clone(&container.init);
                self.follow(&container, init, output);
                Ok(container)
            }
            Err(error) => {
                self.containers().remove(&request.id);
                Err(error)
            }
        }
    }

    async fn mount_and_make(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        announce: Announce,
    ) -> Result<(Arc<Container>, Output), ShimError> {
        let dir = Path::new(&request.bundle);
        rootfs::mount_all(dir, &request.rootfs)?;
        let made = self.make(request, dir, announce).await;
        if made.is_err()
            && let Err(error) = rootfs::unmount_all(dir)
        {
            tracing::warn!("{}", chain(&error));
        }
        made
    }

    async fn make(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        dir: &Path,
        announce: Announce,
    ) -> Result<(Arc<Container>, Output), ShimError> {
        let options = Options::parse(request.options.get_or_default())?;
        let config = options.config_file(dir)?.or_else(|| self.config.clone());
        let config = Config::load(config.as_deref())?;
        if let Some(files) = self.files.get().filter(|_| announce == Announce::All) {
            let added = sandbox_files::add(files, dir);
            added.map_err(|source| ShimError::Own {
                action: "add the pod's files to the container's",
                source,
            })?;
        }
        let bundle = Bundle::load(dir)?;
        let root = options.root.unwrap_or_else(|| ROOT.into());
        let store = Store::new(root.join(&self.namespace));
        let record = Arc::new(remains::prepare(&store, &request.id, &bundle).await?);
        let made = self.bring_up(request, &config, &bundle, &record).await;
        if made.is_err() {
            lifecycle::delete(&record, true).await?;
        }
        let (container, output) = made?;
        let container = Container {
            announce,
            ..container
        };
        Ok((Arc::new(container), output))
    }

    /// Everything up to a container that waits to be started.
    async fn bring_up(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        config: &Config,
        bundle: &Bundle,
        record: &Arc<state::Container>,
    ) -> Result<(Container, Output), ShimError> {
        let own = |action| move |source| ShimError::Own { action, source };
        remember_state(&bundle.dir, record).map_err(own("write into the bundle"))?;
        let outside = Namespace::own().map_err(own("find the host's network namespace"))?;
        let (namespace, placement) = take_network(bundle)?;
        let anchor = PidAnchor::spawn().map_err(own("make a thread"))?;
        let entered = anchor.enter(&namespace);
        entered.map_err(own("enter the container's network namespace"))?;
        claim(record, &anchor)?;
        let uris = Uris {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let opened = stdio::open(&uris, &request.id, &self.namespace)?;
        let start = Start {
            container: record,
            bundle,
            config,
            driver: driver(bundle),
            outside: &outside,
            anchor: &anchor,
        };
        let placement = match (placement, self.sandbox().clone()) {
            (Placement::Joined, Some(sandbox)) => Placement::Owned(sandbox),
            (placement, _) => placement,
        };
        let mut timings = Timings::default();
        let (place, relay) = start.create(placement, opened.host, &mut timings).await?;
        let owns_sandbox = !matches!(bundle.role, Role::Member(_));
        if let Place::Owned(sandbox) = &place
            && owns_sandbox
        {
            *self.sandbox() = Some(Arc::clone(sandbox));
            machine::attend(self, sandbox, &bundle.role);
            remains::sweep(record.store());
        }
        let init = Arc::new(Process::first(uris, anchor));
        init.keep_stdin(opened.keeper);
        let output = Output {
            relay,
            logger: opened.logger,
        };
        let container = Container {
            record: Arc::clone(record),
            bundle: bundle.dir.clone(),
            guest: Arc::clone(place.guest()),
            owns_sandbox,
            announce: Announce::All,
            init,
            execs: Execs::default(),
        };
        Ok((container, output))
    }

    /// Tells containerd of an event of a container.
    pub fn tell<E: Event>(&self, container: &Container, event: &E) {
        if container.announce == Announce::All {
            self.events.publish(event);
        }
    }

    fn tell_created(&self, request: &CreateTaskRequest, container: &Container) {
        self.tell(
            container,
            &TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(TaskIO {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                    ..Default::default()
                })
                .into(),
                checkpoint: request.checkpoint.clone(),
                pid: container.init.pid(),
                ..Default::default()
            },
        );
    }

    /// Starts a container's first process.
    pub async fn start(&self, container: &Container) -> Result<(), ShimError> {
        let _telling = container.init.telling.lock().await;
        container.start().await?;
        self.tell(
            container,
            &TaskStart {
                container_id: container.id().to_owned(),
                pid: container.init.pid(),
                ..Default::default()
            },
        );
        Ok(())
    }

    /// Follows a process to its end.
    pub fn follow(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: Arc<Process>,
        output: Output,
    ) {
        let (pod, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            let exit = container.guest.wait(&container.guest_id(&process)).await;
            let ended = exit.map_or_else(|_| Ended::with_machine(), |exit| Ended::now(exit.status));
            drain(output).await;
            if process.id.is_empty() {
                container.execs.ended().await;
            }
            let _telling = process.telling.lock().await;
            if process.id.is_empty() {
                stopped(&container.record, ended);
            }
            process.set_ended(ended);
            pod.tell_exit(&container, &process, ended);
            if process.id.is_empty() && container.owns_sandbox {
                pod.end_sandbox().await;
            }
        });
    }

    fn tell_exit(&self, container: &Container, process: &Process, ended: Ended) {
        // A container's first process has the container's id.
        let id = match process.id.as_str() {
            "" => container.id(),
            id => id,
        };
        self.tell(
            container,
            &TaskExit {
                container_id: container.id().to_owned(),
                id: id.to_owned(),
                pid: process.pid(),
                exit_status: ended.status,
                exited_at: Some(ended.timestamp()).into(),
                ..Default::default()
            },
        );
    }

    /// Deletes a container that has ended, or was never started; says how it ended.
    pub async fn delete(&self, container: &Container) -> Result<Ended, ShimError> {
        let ended = match (container.init.ended(), container.record.state()?.status) {
            (Some(ended), _) => ended,
            (None, Status::Created) => Ended::with_machine(),
            (None, status) => {
                let id = container.id();
                let message = format!("cannot delete container {id}: it is {status}");
                return Err(ShimError::Unfit(message));
            }
        };
        if container.owns_sandbox {
            self.end_sandbox().await;
        }
        container.remove().await?;
        self.containers().remove(container.id());
        self.tell(
            container,
            &TaskDelete {
                container_id: container.id().to_owned(),
                pid: container.init.pid(),
                exit_status: ended.status,
                exited_at: Some(ended.timestamp()).into(),
                ..Default::default()
            },
        );
        Ok(ended)
    }

    /// Ends the machine, if there is one.
    pub async fn end_sandbox(&self) {
        let Some(sandbox) = self.sandbox().take() else {
            return;
        };
        let others_run = self.containers().values().any(|slot| match slot {
            Slot::Present(container) => container.init.ended().is_none(),
            Slot::Creating => false,
        });
        if others_run {
            let shutdown =
                tokio::time::timeout(SHUTDOWN_LIMIT, sandbox.guest().agent().shut_down());
            tokio::select! {
                biased;
                _ = sandbox.guest().ended() => {}
                done = shutdown => if !matches!(done, Ok(Ok(()))) {
                    tracing::warn!("the machine did not shut down and is ended");
                },
            }
        }
        if let Err(error) = sandbox.end().await {
            tracing::warn!("the machine cannot be ended: {error}");
        }
    }
}

/// Waits until a process's output has been passed on, but not forever; then the rest is passed on
/// behind the back of whoever waits.
async fn drain(output: Output) {
    let drained = tokio::spawn(async move {
        output.relay.drained().await;
        if let Some(logger) = output.logger {
            logger.finish();
        }
    });
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        tracing::debug!("a process has ended, its output has not");
    }
}

/// Who makes a container's control groups: containerd's configuration need not say, because the form
/// of the path does.
fn driver(bundle: &Bundle) -> Driver {
    let linux = bundle.spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    match path.and_then(Path::to_str) {
        Some(path) if path.contains(".slice:") => Driver::Systemd,
        _ => Driver::Cgroupfs,
    }
}
