//! ExecProcess.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::create::{pid_namespace_of, set_oom_score};
use super::launch::{Launch, User, write_plan};
use super::preparing::{LaunchError, Preparing, Progress};
use super::{Container, Exec, spec, supervise};
use crate::error::AgentError;
use crate::init::plan::{Plan, Role};
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::streams::{self, ProcessEnds, StreamIds};
use crate::sys::{Doing as _, OsError};

/// What is to be made.
pub struct ExecOrder<'a> {
    /// Unique in the container.
    pub id: &'a str,
    /// The process object, as JSON.
    pub process: &'a [u8],
    /// Its streams.
    pub streams: &'a StreamIds,
    /// Wait for a paused container to be resumed.
    pub ignore_paused: bool,
    /// The group below the container's own, or nothing.
    pub cgroup: &'a str,
}

/// Adds a process to a container; it runs its program when this returns.
pub async fn exec(
    sandbox: &Sandbox,
    container: &Arc<Container>,
    order: &ExecOrder<'_>,
) -> Result<Arc<Process>, AgentError> {
    container.reserve_exec(order.id, order.ignore_paused)?;
    let started = exec_reserved(sandbox, container, order).await;
    let mut execs = container.lock_execs();
    match &started {
        Ok(process) => {
            execs.insert(order.id.to_owned(), Exec::Started(process.clone()));
        }
        Err(_) => {
            execs.remove(order.id);
        }
    }
    started
}

async fn exec_reserved(
    sandbox: &Sandbox,
    container: &Arc<Container>,
    order: &ExecOrder<'_>,
) -> Result<Arc<Process>, AgentError> {
    let ids = order.streams;
    let mut plan = spec::exec_process(order.process, &container.defaults)?;
    let given = (ids.rows != 0 || ids.cols != 0).then_some((ids.rows, ids.cols));
    plan.terminal = ids
        .terminal
        .then(|| given.or(plan.terminal).unwrap_or_default());
    let cgroup = match order.cgroup {
        "" => None,
        path => Some(container.cgroup.descend(path)?),
    };
    let role = Role::Join {
        namespaces: container.namespaces
            | if container.has_user_namespace {
                libc::CLONE_NEWUSER as u64
            } else {
                0
            },
        user_namespace: container.has_user_namespace,
    };
    let streams = streams::prepare(&sandbox.streams, ids)?;
    let (waiting, control) = Preparing::new().map_err(LaunchError::from)?;
    let (pid, pidfd) = make_process(
        sandbox,
        container,
        cgroup.as_ref(),
        &Plan {
            role,
            process: plan,
            extra: streams.for_process.extra_count(),
        },
        &streams.for_process,
        &control,
    )
    .map_err(LaunchError::from)?;
    let exit = sandbox.reaper.expect(pid);
    drop(control);
    set_oom_score(pid, container.oom_score_adj).map_err(LaunchError::from)?;
    let terminal = until_executed(&waiting).await?;
    let process = Arc::new(Process::new(pid, pidfd));
    match terminal {
        Some(master) => process.set_terminal(streams.start_terminal(master)?),
        None => streams.start(),
    }
    supervise::exec_process(sandbox, container, order.id, &process, exit);
    Ok(process)
}

fn make_process(
    sandbox: &Sandbox,
    container: &Container,
    cgroup: Option<&OwnedFd>,
    plan: &Plan,
    ends: &ProcessEnds,
    control: &OwnedFd,
) -> Result<(Pid, OwnedFd), OsError> {
    let born_in = match container.has_pid_namespace {
        true => vec![pid_namespace_of(container.init.pid())?],
        false => Vec::new(),
    };
    let plan = write_plan(plan)?;
    let launch_in = |cgroup: BorrowedFd<'_>| {
        Launch {
            program: sandbox.program.as_fd(),
            cgroup,
            create: 0,
            born_in: &born_in,
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
        // A container that manages cgroups itself, as systemd does, has none but its own below, and
        // a group with groups below it takes no processes: go where the first process went.
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

async fn until_executed(waiting: &Preparing) -> Result<Option<OwnedFd>, LaunchError> {
    let mut terminal = None;
    loop {
        match waiting.progress().await {
            Ok(Progress::Terminal(master)) => terminal = Some(master),
            Ok(Progress::Ready) => return Err(LaunchError::Ended),
            Ok(Progress::Executed) => return Ok(terminal),
            Err(LaunchError::Init { message, .. }) => return Err(LaunchError::Join(message)),
            Err(error) => return Err(error),
        }
    }
}
