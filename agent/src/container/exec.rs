//! ExecProcess.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rvm_protocol::ExecId;

use super::control::{Control, LaunchError, Progress};
use super::create::{pid_namespace_of, set_oom_score};
use super::launch::{Launch, User, write_plan};
use super::{Container, ContainerError, Exec, Runtime, spec, supervise};
use crate::init::plan::{Plan, Role};
use crate::process::Process;
use crate::streams::{self, ProcessEnds, StreamIds};
use crate::sys::{Doing as _, OsError};

/// See the protocol's `ExecProcessRequest`.
pub struct ExecRequest<'a> {
    pub id: ExecId,
    /// The OCI process object, as JSON.
    pub process: &'a [u8],
    pub streams: &'a StreamIds,
    /// Wait for a paused container to be resumed.
    pub ignore_paused: bool,
    /// A group below the container's own; empty for the container's own.
    pub cgroup: &'a str,
}

/// Adds a process to a container, and returns when it runs its program.
pub async fn exec(
    runtime: &Runtime,
    container: &Arc<Container>,
    request: &ExecRequest<'_>,
) -> Result<Arc<Process>, ContainerError> {
    container.reserve_exec(&request.id, request.ignore_paused)?;
    let started = exec_reserved(runtime, container, request).await;
    let mut execs = container.lock_execs();
    match &started {
        Ok(process) => {
            execs.insert(request.id.clone(), Exec::Started(process.clone()));
        }
        Err(_) => {
            execs.remove(&request.id);
        }
    }
    started
}

async fn exec_reserved(
    runtime: &Runtime,
    container: &Arc<Container>,
    request: &ExecRequest<'_>,
) -> Result<Arc<Process>, ContainerError> {
    let ids = request.streams;
    let mut plan = spec::exec_process(request.process, &container.defaults)?;
    plan.terminal = ids.terminal_plan(plan.terminal);
    let cgroup = match request.cgroup {
        "" => None,
        path => Some(container.cgroup.descend(path)?),
    };
    let user_flag = match container.has_user_namespace {
        true => libc::CLONE_NEWUSER as u64,
        false => 0,
    };
    let role = Role::Join {
        namespaces: container.namespaces | user_flag,
        user_namespace: container.has_user_namespace,
    };
    let streams = streams::prepare(&runtime.streams, ids)?;
    let (control, process_end) = Control::new().map_err(LaunchError::from)?;
    let (pid, pidfd) = make_process(
        runtime,
        container,
        cgroup.as_ref(),
        &Plan {
            role,
            process: plan,
            extra: streams.for_process.extra_count(),
        },
        &streams.for_process,
        &process_end,
    )
    .map_err(LaunchError::from)?;
    let exit = runtime.reaper.expect(pid);
    drop(process_end);
    set_oom_score(pid, container.oom_score_adj).map_err(LaunchError::from)?;
    let terminal = until_executed(&control).await?;
    let process = Arc::new(Process::new(pid, pidfd));
    match terminal {
        Some(master) => process.set_terminal(streams.start_terminal(master)?),
        None => streams.start(),
    }
    supervise::exec_process(runtime, container, &request.id, &process, exit);
    Ok(process)
}

fn make_process(
    runtime: &Runtime,
    container: &Container,
    cgroup: Option<&OwnedFd>,
    plan: &Plan,
    ends: &ProcessEnds,
    control: &OwnedFd,
) -> Result<(Pid, OwnedFd), OsError> {
    let namespaces = match container.has_pid_namespace {
        true => vec![pid_namespace_of(container.init.pid())?],
        false => Vec::new(),
    };
    let plan = write_plan(plan)?;
    let launch_in = |cgroup: BorrowedFd<'_>| {
        Launch {
            program: runtime.program.as_fd(),
            cgroup,
            create: 0,
            namespaces: &namespaces,
            user: &User::Same,
            ends,
            control: control.as_fd(),
            plan: plan.as_fd(),
            filter: container.filter.as_ref().map(|filter| filter.as_fd()),
            join: Some(container.init.pidfd().as_fd()),
            mounts: &[],
        }
        .run()
    };
    if let Some(cgroup) = cgroup {
        return launch_in(cgroup.as_fd());
    }
    match launch_in(container.cgroup.directory()) {
        // The container manages cgroups itself, as systemd does: a group with groups below it takes
        // no processes. Start in the group of the init process.
        Err(OsError {
            errno: Errno::BUSY, ..
        }) => launch_in(cgroup_of(container.init.pid())?.as_fd()),
        result => result,
    }
}

fn cgroup_of(pid: u32) -> Result<OwnedFd, OsError> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"));
    let group = group
        .ok_or(Errno::NOENT)
        .doing(|| format!("find a cgroup in {path}"))?;
    let path = format!("/sys/fs/cgroup{group}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open cgroup {path}"))
}

async fn until_executed(control: &Control) -> Result<Option<OwnedFd>, LaunchError> {
    let mut terminal = None;
    loop {
        match control.progress().await {
            Ok(Progress::Terminal(master)) => terminal = Some(master),
            Ok(Progress::Ready) => return Err(LaunchError::Ended),
            Ok(Progress::Executed) => return Ok(terminal),
            Err(LaunchError::Init { message, .. }) => return Err(LaunchError::Join(message)),
            Err(error) => return Err(error),
        }
    }
}
