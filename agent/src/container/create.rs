//! CreateContainer.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::Pid;
use tokio::sync::oneshot;

use super::cgroup::Cgroup;
use super::idmap::{self, write_maps};
use super::launch::{Birthplace, Launch, User, memory_file, write_plan};
use super::preparing::{LaunchError, Preparing, Progress};
use super::spec::{self, ContainerSpec, Namespaces, UserNamespace};
use super::state::State;
use super::{Container, devices, seccomp, supervise};
use crate::error::AgentError;
use crate::host_dirs::HostDir;
use crate::init::create::write_sysctls;
use crate::init::plan::{MountPlan, MountSource, Plan, ProcessPlan, Role};
use crate::process::Process;
use crate::reaper::Exit;
use crate::sandbox::Sandbox;
use crate::streams::{self, ProcessEnds, ProcessStreams, StreamIds};
use crate::sys::{Doing as _, OsError};

/// Makes a container up to the point where only the word to start is missing.
pub async fn create(
    sandbox: &Sandbox,
    id: &str,
    config: &[u8],
    ids: &StreamIds,
) -> Result<Arc<Container>, AgentError> {
    let mut spec = spec::translate(id, config)?;
    devices::check(&mut spec.container, spec.resources.as_ref())?;
    set_terminal(&mut spec, ids);
    let filter = match &spec.seccomp {
        None => None,
        Some(config) => {
            let filter = seccomp::compile(config)?;
            spec.process.seccomp_flags = Some(filter.flags);
            Some(memory_file("seccomp", &filter.instructions).map_err(LaunchError::from)?)
        }
    };
    let streams = streams::prepare(&sandbox.streams, ids)?;
    let cgroup = Cgroup::create(id)?;
    match launch(sandbox, spec, filter, &cgroup, &streams.for_process).await {
        Ok(launched) => finish(sandbox, id, cgroup, streams, launched),
        Err(error) => {
            // The reason is the error; what cannot be removed on top of it is only noted.
            if let Err(error) = cgroup.remove().await {
                log::warn!("container {id}: {error}");
            }
            Err(error)
        }
    }
}

/// The terminal is the caller's to decide; its size falls back on config.json's.
fn set_terminal(spec: &mut ContainerSpec, ids: &StreamIds) {
    let given = (ids.rows != 0 || ids.cols != 0).then_some((ids.rows, ids.cols));
    let size = given.or(spec.process.terminal).unwrap_or_default();
    spec.process.terminal = ids.terminal.then_some(size);
}

/// A first process that waits for the word to start.
struct Launched {
    process: Arc<Process>,
    exit: oneshot::Receiver<Exit>,
    waiting: Preparing,
    terminal: Option<OwnedFd>,
    defaults: ProcessPlan,
    namespaces: Namespaces,
    filter: Option<OwnedFd>,
    oom_score_adj: i32,
    host_dirs: Vec<Arc<HostDir>>,
}

async fn launch(
    sandbox: &Sandbox,
    spec: ContainerSpec,
    filter: Option<OwnedFd>,
    cgroup: &Cgroup,
    ends: &ProcessEnds,
) -> Result<Launched, AgentError> {
    cgroup.apply(spec.resources.as_ref())?;
    delegate_cgroup(cgroup, &spec.namespaces)?;
    let (waiting, control) = Preparing::new().map_err(LaunchError::from)?;
    let host_dirs = mount_host_dirs(sandbox, &spec.container.mounts);
    let (pid, pidfd) = make_process(sandbox, &spec, filter.as_ref(), cgroup, ends, &control)
        .map_err(LaunchError::from)?;
    let exit = sandbox.reaper.expect(pid);
    // The process has its own; the conversation ends when it closes that.
    drop(control);
    set_up_from_outside(pid, &spec, &waiting).map_err(LaunchError::from)?;
    let terminal = until_ready(&waiting).await?;
    Ok(Launched {
        process: Arc::new(Process::new(pid, pidfd)),
        exit,
        waiting,
        terminal,
        defaults: ProcessPlan {
            terminal: None,
            ..spec.process
        },
        namespaces: spec.namespaces,
        filter,
        oom_score_adj: spec.oom_score_adj,
        host_dirs,
    })
}

fn mount_host_dirs(sandbox: &Sandbox, mounts: &[MountPlan]) -> Vec<Arc<HostDir>> {
    let paths = mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Bind { path, .. } => Some(path),
        _ => None,
    });
    paths
        .filter_map(|path| sandbox.host_dirs.mount(path))
        .collect()
}

fn make_process(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    filter: Option<&OwnedFd>,
    cgroup: &Cgroup,
    ends: &ProcessEnds,
    control: &OwnedFd,
) -> Result<(Pid, OwnedFd), OsError> {
    let born_in = spec
        .namespaces
        .join
        .iter()
        .map(|join| Birthplace::open(&join.path, join.flag))
        .collect::<Result<Vec<_>, _>>()?;
    let user = user(&spec.namespaces.user)?;
    let mounts = idmap::prepare(&spec.idmaps)?;
    let role = Role::Create(Box::new(spec.container.clone()));
    let plan = write_plan(&Plan {
        role,
        process: spec.process.clone(),
        extra: ends.extra_count(),
    })?;
    Launch {
        program: sandbox.program.as_fd(),
        cgroup: cgroup.directory(),
        create: spec.namespaces.create,
        born_in: &born_in,
        user: &user,
        ends,
        control: control.as_fd(),
        plan: plan.as_fd(),
        filter: filter.map(|filter| filter.as_fd()),
        join: None,
        mounts: &mounts,
    }
    .run()
}

fn user(namespace: &UserNamespace) -> Result<User, OsError> {
    Ok(match namespace {
        UserNamespace::Guest => User::Same,
        UserNamespace::New { .. } => User::New,
        UserNamespace::Join(path) => {
            User::Existing(Birthplace::open(path, libc::CLONE_NEWUSER as u64)?.fd)
        }
    })
}

/// A container that has a user and a cgroup namespace of its own may manage its group.
fn delegate_cgroup(cgroup: &Cgroup, namespaces: &Namespaces) -> Result<(), AgentError> {
    if let UserNamespace::New {
        root: Some((uid, gid)),
        ..
    } = namespaces.user
        && namespaces.unshare_cgroup
    {
        cgroup.delegate(uid, gid)?;
    }
    Ok(())
}

/// What only the agent may do to the process, which has perhaps no power in the guest.
fn set_up_from_outside(pid: Pid, spec: &ContainerSpec, waiting: &Preparing) -> Result<(), OsError> {
    set_oom_score(pid, spec.oom_score_adj)?;
    write_sysctls(&spec.guest_sysctls)?;
    if let UserNamespace::New {
        uid_map, gid_map, ..
    } = &spec.namespaces.user
    {
        write_maps(pid, uid_map, gid_map)?;
        waiting.proceed()?;
    }
    Ok(())
}

/// Sets how likely the OOM killer is to take a process. Written by the agent, which also sets how
/// far the process may lower it by itself.
pub fn set_oom_score(pid: Pid, score: i32) -> Result<(), OsError> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    match std::fs::write(&path, score.to_string()) {
        // It has ended already, and that is what will be reported.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("write {score} to {path}")),
    }
}

async fn until_ready(waiting: &Preparing) -> Result<Option<OwnedFd>, LaunchError> {
    let mut terminal = None;
    loop {
        match waiting.progress().await? {
            Progress::Terminal(master) => terminal = Some(master),
            Progress::Ready => return Ok(terminal),
            Progress::Executed => return Err(LaunchError::Ended),
        }
    }
}

fn finish(
    sandbox: &Sandbox,
    id: &str,
    cgroup: Cgroup,
    streams: ProcessStreams,
    launched: Launched,
) -> Result<Arc<Container>, AgentError> {
    let Launched {
        process,
        exit,
        waiting,
        terminal,
        defaults,
        namespaces,
        filter,
        oom_score_adj,
        host_dirs,
    } = launched;
    match terminal {
        Some(master) => process.set_terminal(streams.start_terminal(master)?),
        None => streams.start(),
    }
    let pid_flag = libc::CLONE_NEWPID as u64;
    let joined = namespaces
        .join
        .iter()
        .fold(0, |flags, join| flags | join.flag);
    let all = namespaces.create
        | joined
        | if namespaces.unshare_cgroup {
            libc::CLONE_NEWCGROUP as u64
        } else {
            0
        };
    let container = Arc::new(Container {
        id: id.to_owned(),
        cgroup,
        init: process,
        state: Mutex::new(State::Created),
        execs: Mutex::new(HashMap::new()),
        waiting: Mutex::new(Some(waiting)),
        defaults,
        filter,
        oom_score_adj,
        _host_dirs: host_dirs,
        namespaces: all & !pid_flag,
        has_pid_namespace: all & pid_flag != 0,
        has_user_namespace: namespaces.user.is_own(),
        owns_pid_namespace: namespaces.owns_pid,
    });
    supervise::first_process(sandbox, &container, exit);
    Ok(container)
}

/// Where the pid namespace of a process's children is found.
pub fn pid_namespace_of(pid: u32) -> Result<Birthplace, OsError> {
    let path = format!("/proc/{pid}/ns/pid");
    Birthplace::open(Path::new(&path), libc::CLONE_NEWPID as u64)
}
