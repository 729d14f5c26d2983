//! The verbs of a container's life: create, start, kill and delete.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use rvm_protocol::ContainerId;
use rvm_protocol::failure::Failure;

use crate::cgroup::{Cgroup, CgroupError};
use crate::container::ending::{self, end_machine, end_monitor, leave};
use crate::container::running::{connect, explained};
use crate::control::{self, ControlError};
use crate::dir::SandboxDir;
use crate::dir::layout::Layout;
use crate::guest::agent::AgentError;
use crate::hooks::{self, HookError, HookPoint};
use crate::host::pid_file;
use crate::host::process::ProcessId;
use crate::host::tree_copy::CopyError;
use crate::network;
use crate::share::{self, StorageError};
use crate::spec::pod::{Peer, Role};
use crate::spec::process::warn_about_ambient;
use crate::spec::{Bundle, SpecError};
use crate::state::{Container, State, StateError, Status, Store, timestamp};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;

/// How long a guest may take to answer to a signal other than SIGKILL before it counts as pending.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a monitor may take to exit whose container is in a checkpoint.
const CHECKPOINT_END_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a forced deletion is tried on a host that lacks something, and how long it waits in
/// between.
const DELETIONS: u32 = 3;
const DELETION_PAUSE: Duration = Duration::from_millis(50);

/// A verb failed.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The bundle cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The state could not be found, read or changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The shared directory could not be changed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The agent refused a call, or its connection was lost.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The cgroups could not be read or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The sandbox's owner did not carry out a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A poststart hook failed, so the container was killed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The monitor says why it did not create the container.
    #[error(transparent)]
    Monitor(Failure),
    /// The monitor ended without saying why.
    #[error("the container's monitor ended before the container was created")]
    MonitorGone,
    /// A container's files could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A system call on a file or a process failed.
    #[error("cannot {action}")]
    Io {
        /// The call's purpose, in the infinitive.
        action: String,
        /// From the call.
        #[source]
        source: io::Error,
    },
    /// The container's status does not allow the verb. The words are runc's where it has some.
    #[error("{0}")]
    FailedPrecondition(String),
}

pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> LifecycleError {
    let action = action.into();
    move |source| LifecycleError::Io { action, source }
}

/// Makes the directory of a new container, and its state, which is `Creating`.
pub fn prepare(store: &Store, id: &str, bundle: &Bundle) -> Result<Container, LifecycleError> {
    let sandbox = match &bundle.role {
        Role::Alone | Role::Sandbox => None,
        Role::Member(id) => Some(ContainerId::new(id).map_err(StateError::from)?),
    };
    let version = layout_in(store, sandbox.as_ref())?;
    let own = ProcessId::own().map_err(failed("find out the own pid"))?;
    // Whatever fails from here on removes it again.
    let container = store.create(id)?;
    let process = bundle.spec.process().as_ref();
    if let Some(process) = process {
        warn_about_ambient(process);
    }
    let state = State {
        version,
        oci_version: bundle.spec.version().clone(),
        id: container.id().clone(),
        status: Status::Creating,
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        created: timestamp(),
        owner: rustix::process::getuid().as_raw(),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        hooks: bundle.spec.hooks().clone(),
        resources: bundle
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone()),
        first_resources: None,
        kept_memory: None,
        terminal: bundle.has_terminal(),
        monitor: Some(own),
        anchor_pid: None,
        sandbox,
        guest_pid: None,
        streams: None,
        namespaces: Peer::paths(&bundle.spec),
        cgroup: None,
        exit_status: None,
    };
    let saved = container.lock().and_then(|locked| locked.save(&state));
    if let Err(error) = saved {
        if let Err(error) = remove(&container) {
            tracing::warn!("{}", chain(&error));
        }
        return Err(error.into());
    }
    Ok(container)
}

/// The layout of the state of a container that is to be in a sandbox: its owner, which may be of an
/// older rvm, reads and writes the states of all containers in it.
fn layout_in(store: &Store, sandbox: Option<&ContainerId>) -> Result<Layout, StateError> {
    let Some(sandbox) = sandbox else {
        return Ok(Layout::CURRENT);
    };
    let owner = store.open(sandbox.as_str());
    match owner.and_then(|owner| owner.state()) {
        Ok(owner) => Ok(owner.version),
        Err(error @ StateError::Newer(_)) => Err(error),
        // That there is no sandbox is reported where it is to be joined.
        Err(_) => Ok(Layout::CURRENT),
    }
}

/// Writes a pid file in one step, and follows no symbolic link.
pub fn write_pid_file(path: &Path, pid: u32) -> Result<(), LifecycleError> {
    let written = fault_point!("pid-file.write").and_then(|()| pid_file::write(path, pid));
    written.map_err(failed(format!("write the pid file {}", path.display())))
}

/// Starts a container that is created. The sandbox's owner does it.
pub async fn start(container: &Container) -> Result<(), LifecycleError> {
    let state = container.state()?;
    let refusal = match state.status() {
        Status::Created => None,
        Status::Stopped => Some("cannot start a container that has stopped"),
        Status::Creating => Some("cannot start a container that is still being created"),
        Status::Running | Status::Paused => Some("cannot start an already running container"),
    };
    if let Some(refusal) = refusal {
        return Err(LifecycleError::FailedPrecondition(refusal.to_owned()));
    }
    let sandbox = container.sandbox(&state)?;
    let id = container.id().clone();
    control::ask(&sandbox, control::Request::Start { id }).await?;
    let done = hooks::run_poststart(&state, None).await;
    if done.is_err() {
        match kill(container, libc::SIGKILL, false).await {
            // It has ended already.
            Ok(()) | Err(LifecycleError::FailedPrecondition(_)) => {}
            other => other?,
        }
    }
    Ok(done?)
}

/// Writes a container's machine to a checkpoint in a directory, an absolute path. Unless the
/// container is to go on, its machine has ended then. Returns the state from before.
pub async fn save(
    container: &Container,
    dir: &Path,
    leave_running: bool,
) -> Result<State, LifecycleError> {
    let state = state_to_save(container)?;
    let request = control::Request::Checkpoint {
        id: container.id().clone(),
        path: dir.to_owned(),
        leave_running,
    };
    control::ask(&container.sandbox(&state)?, request).await?;
    Ok(state)
}

/// The state of a container that has a machine of its own and runs or is paused.
pub(super) fn state_to_save(container: &Container) -> Result<State, LifecycleError> {
    let state = container.state()?;
    let refused = |words: String| Err(LifecycleError::FailedPrecondition(words));
    match state.status() {
        Status::Running | Status::Paused => {}
        status => {
            return refused(format!(
                "a container that is {status} cannot be checkpointed"
            ));
        }
    }
    if let Some(sandbox) = &state.sandbox {
        return refused(format!(
            "the container shares its machine with the other containers of its pod: name {sandbox}, \
             which is checkpointed with all of them"
        ));
    }
    Ok(state)
}

/// As [`save`], but a container that does not go on is deleted, as with runc, and so are the others
/// of its pod.
pub async fn checkpoint(
    container: &Container,
    dir: &Path,
    leave_running: bool,
) -> Result<(), LifecycleError> {
    let members = container.store().members(container.id())?;
    let state = save(container, dir, leave_running).await?;
    if leave_running {
        return Ok(());
    }
    for member in &members {
        match container.store().open(member.id.as_str()) {
            Err(StateError::NotFound(_)) => {}
            opened => delete_saved(&opened?, member).await?,
        }
    }
    delete_saved(container, &state).await
}

/// Deletes a container that is in a checkpoint, once its monitor has ended.
async fn delete_saved(container: &Container, state: &State) -> Result<(), LifecycleError> {
    // What stands for the container exits with its exit code, and may delete it.
    let monitor = state.monitor.map_or(Ok(None), ProcessId::open);
    if let Some(process) = monitor.map_err(failed("find the container's monitor"))? {
        let ended = process.ends_within(CHECKPOINT_END_TIMEOUT).await;
        ended.map_err(failed("wait for the end of the container's monitor"))?;
    }
    match delete(container, true).await {
        Err(LifecycleError::State(StateError::NotFound(_))) => Ok(()),
        other => other,
    }
}

/// Signals a container's init process, or all of its processes; that there are none is no error
/// then. After SIGKILL the container has ended when this returns, whatever its guest does. Another
/// signal is pending if the guest does not answer: containerd's CRI and Podman 4 never come to
/// SIGKILL if the first signal fails.
pub async fn kill(container: &Container, signal: i32, all: bool) -> Result<(), LifecycleError> {
    let state = container.state()?;
    match state.status() {
        Status::Created | Status::Running | Status::Paused => {}
        Status::Stopped if all => return Ok(()),
        status @ (Status::Creating | Status::Stopped) => {
            return Err(LifecycleError::FailedPrecondition(format!(
                "container not running: it is {status}"
            )));
        }
    }
    let signalled = match signal {
        libc::SIGKILL => ending::kill(container, &state, all).await,
        _ => send(container, &state, signal, all).await,
    };
    match signalled {
        // No process is left to signal.
        Err(LifecycleError::FailedPrecondition(_)) if all => Ok(()),
        other => other,
    }
}

async fn send(
    container: &Container,
    state: &State,
    signal: i32,
    all: bool,
) -> Result<(), LifecycleError> {
    let agent = connect(container, state).await?;
    let signalled = async {
        match all {
            true => agent.signal_all(container.id(), signal).await,
            false => agent.signal(&container.init(), signal).await,
        }
    };
    if let Ok(signalled) = tokio::time::timeout(ANSWER_TIMEOUT, signalled).await {
        return explained(container, state, signalled).await;
    }
    // The request is on its way to the guest, and stays so without this connection.
    let id = container.id();
    tracing::warn!("container {id}: its guest does not answer; signal {signal} is pending");
    Ok(())
}

/// Deletes a container and everything that belongs to it. `force` deletes one that runs as well,
/// one whose state is damaged or half made, and one of a newer rvm if its state still has the
/// fields that this one knows.
pub async fn delete(container: &Container, force: bool) -> Result<(), LifecycleError> {
    let tries = if force { DELETIONS } else { 1 };
    for _ in 1..tries {
        match delete_once(container, force, false).await {
            // Each step can be done again. What is skipped for want of a descriptor nobody finds.
            Err(error) if is_passing(&error) => {
                tracing::debug!("container {}: {}", container.id(), chain(&error));
                tokio::time::sleep(DELETION_PAUSE).await;
            }
            other => return other,
        }
    }
    delete_once(container, force, true).await
}

/// Whether a host may have in a moment what it lacks now.
fn is_passing(error: &LifecycleError) -> bool {
    let first: &(dyn Error + 'static) = error;
    let mut errors = std::iter::successors(Some(first), |&error| error.source());
    let errno = errors.find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    let lacks = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::EAGAIN,
        libc::EINTR,
        libc::ENOSPC,
        libc::EIO,
    ];
    errno.is_some_and(|errno| lacks.contains(&errno))
}

async fn delete_once(
    container: &Container,
    force: bool,
    is_last: bool,
) -> Result<(), LifecycleError> {
    let state = match mark_for_removal(container, force) {
        // The file says what else to remove, in words that only the newer rvm knows.
        Err(LifecycleError::State(error @ StateError::Newer(_))) => return Err(error.into()),
        // It may be read the next time.
        Err(error) if !is_last && is_passing(&error) => return Err(error),
        // Damaged, half made, or another process was faster.
        Err(LifecycleError::State(_)) if force => None,
        other => Some(other?),
    };
    fault_point!("delete.marked").map_err(failed("delete"))?;
    if let Some(state) = &state {
        // The monitor first, or it would report the end of its machine as a failure.
        end_monitor(state).await?;
        leave(container, state, state.exit_status.is_none()).await?;
    }
    if container.is_gone() {
        return Ok(());
    }
    fault_point!("delete.left").map_err(failed("delete"))?;
    end_own_machine(container, state.as_ref()).await?;
    if let Some(state) = &state {
        restore_network(state);
    }
    if let Some(cgroup) = state.as_ref().and_then(|state| state.cgroup.as_ref()) {
        remove_cgroup(cgroup, force && is_last)?;
    }
    fault_point!("delete.ended").map_err(failed("delete"))?;
    // Of several processes that delete it, one runs the hooks.
    let removed = remove(container)?;
    if let Some(state) = state.as_ref().filter(|_| removed) {
        hooks::run_and_warn(HookPoint::Poststop, state.hooks.as_ref(), state, None).await;
    }
    Ok(())
}

/// Deletes a container whose creation has failed, for a reason that explains more than what fails
/// here.
pub async fn give_up(container: &Container) {
    if let Err(error) = delete(container, true).await {
        tracing::warn!(
            "{}; rvm delete --force {} removes what is left",
            chain(&error),
            container.id()
        );
    }
}

/// Restores the network namespace that the engine had given to a sandbox. A monitor that has
/// written down how its container ended has done so itself.
fn restore_network(state: &State) {
    if state.exit_status.is_some() || state.sandbox.is_some() {
        return;
    }
    let mut given = state.namespaces.iter();
    let network = given.find(|(kind, _)| *kind == LinuxNamespaceType::Network);
    if let Some((_, path)) = network
        && let Err(error) = network::restore(path)
    {
        // The namespace has gone, most likely.
        tracing::debug!("{}", chain(&error));
    }
}

/// Writes down that the container has stopped, so that a process that is starting it finds out and
/// gives up. Returns the state that it was in.
fn mark_for_removal(container: &Container, force: bool) -> Result<State, LifecycleError> {
    let locked = container.lock()?;
    let state = match force {
        true => locked.load_to_delete()?,
        false => locked.load()?,
    };
    let status = state.status();
    let removable = matches!(status, Status::Stopped | Status::Created);
    if !removable && !force {
        return Err(LifecycleError::FailedPrecondition(format!(
            "cannot delete container {} that is not stopped: {status}",
            container.id()
        )));
    }
    if state.version > Layout::CURRENT {
        // The newer rvm would miss fields in what this one writes.
        return Ok(state);
    }
    let mut stopped = state.clone();
    stopped.status = Status::Stopped;
    match locked.save(&stopped) {
        // A full disk must not keep the container that fills it.
        Err(_) if force => {}
        other => other?,
    }
    Ok(state)
}

fn remove_cgroup(cgroup: &Cgroup, may_stay: bool) -> Result<(), LifecycleError> {
    match cgroup.remove() {
        // A cgroup that stays must not keep the container.
        Err(error) if may_stay => {
            tracing::warn!("{}", chain(&error));
            Ok(())
        }
        removed => Ok(removed?),
    }
}

/// Ends the machine that was started for a container, if there is one.
async fn end_own_machine(
    container: &Container,
    state: Option<&State>,
) -> Result<(), LifecycleError> {
    match SandboxDir::open(container.path()) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => {
            let path = container.path().display();
            let sandbox = opened.map_err(failed(format!("open {path}")))?;
            end_machine(&sandbox, state).await
        }
    }
}

/// Removes a container's directory. There are only files of rvm's in it, and no link is followed:
/// the shared directory is unmounted, not emptied. Returns whether the directory was there; other
/// processes may remove it at the same time.
fn remove(container: &Container) -> Result<bool, LifecycleError> {
    // A process that waits for the lock finds the container deleted.
    let _locked = match container.lock() {
        Err(StateError::NotFound(_)) => return Ok(false),
        other => other?,
    };
    share::remove(container.path())?;
    let path = container.path();
    let removed = || {
        fault_point!("delete.files")?;
        for entry in fs::read_dir(path)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(path)
    };
    removed().map_err(failed(format!("remove {}", path.display())))?;
    Ok(true)
}
