//! CreateContainer.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::Pid;
use rvm_protocol::ContainerId;
use tokio::sync::oneshot;

use super::control::{Control, LaunchError, Progress};
use super::devices::AbsentDevices;
use super::idmap::{self, write_maps};
use super::launch::{Launch, OpenNamespace, User, memory_file, write_plan};
use super::spec::{self, ContainerSpec, Namespaces, UserNamespace};
use super::state::State;
use super::{Container, ContainerError, Runtime, devices, seccomp, supervise};
use crate::cgroup::Cgroup;
use crate::disks::DeviceMap;
use crate::init::create::write_sysctls;
use crate::init::plan::{MountPlan, MountSource, Plan, ProcessPlan, Role};
use crate::meminfo::Shown;
use crate::process::{Exit, Process};
use crate::streams::{self, ProcessEnds, ProcessStreams, StreamIds};
use crate::sys::{Doing as _, OsError};
use crate::volumes::HostDir;

/// Makes a container, whose init process then waits for StartContainer.
pub async fn create(
    runtime: &Runtime,
    id: &ContainerId,
    (config, absent): (&[u8], &AbsentDevices),
    ids: &StreamIds,
    disks: DeviceMap,
) -> Result<Arc<Container>, ContainerError> {
    let mut spec = spec::translate(id.as_str(), config)?;
    let resources = spec.resources.as_ref();
    devices::prepare(&mut spec.container, resources, (&disks, absent))?;
    if let Some(resources) = &mut spec.resources {
        disks.translate(resources);
    }
    spec.process.terminal = ids.terminal_plan(spec.process.terminal);
    let filter = match &spec.seccomp {
        None => None,
        Some(config) => {
            let filter = seccomp::compile(config)?;
            spec.process.seccomp_flags = Some(filter.flags);
            Some(memory_file("seccomp", &filter.instructions).map_err(LaunchError::from)?)
        }
    };
    let streams = streams::prepare(&runtime.streams, ids)?;
    let cgroup = Cgroup::create(id)?;
    let capabilities = &spec.process.capabilities;
    let meminfo = runtime
        .meminfo
        .show(id, &cgroup, capabilities, &mut spec.container);
    match launch(runtime, spec, filter, &cgroup, &streams.for_process).await {
        Ok(launched) => finish(runtime, id, cgroup, (meminfo, disks), streams, launched),
        Err(error) => {
            // The caller gets the first error.
            if let Err(error) = cgroup.remove().await {
                log::warn!("container {id}: {error}");
            }
            Err(error)
        }
    }
}

/// An init process that waits for StartContainer.
struct Launched {
    process: Arc<Process>,
    exit: oneshot::Receiver<Exit>,
    waiting: Control,
    terminal: Option<OwnedFd>,
    defaults: ProcessPlan,
    namespaces: Namespaces,
    filter: Option<OwnedFd>,
    oom_score_adj: i32,
    host_dirs: Vec<Arc<HostDir>>,
}

async fn launch(
    runtime: &Runtime,
    spec: ContainerSpec,
    filter: Option<OwnedFd>,
    cgroup: &Cgroup,
    ends: &ProcessEnds,
) -> Result<Launched, ContainerError> {
    cgroup.apply(spec.resources.as_ref())?;
    delegate_cgroup(cgroup, &spec.namespaces)?;
    let (waiting, process_end) = Control::new().map_err(LaunchError::from)?;
    let host_dirs = mount_host_dirs(runtime, &spec.container.mounts);
    let (pid, pidfd) = make_process(runtime, &spec, filter.as_ref(), cgroup, ends, &process_end)
        .map_err(LaunchError::from)?;
    let exit = runtime.reaper.expect(pid);
    // The process has a copy; the socket ends when the process closes that.
    drop(process_end);
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

fn mount_host_dirs(runtime: &Runtime, mounts: &[MountPlan]) -> Vec<Arc<HostDir>> {
    let paths = mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Bind { path, .. } => Some(path),
        _ => None,
    });
    paths
        .filter_map(|path| runtime.host_dirs.mount(path))
        .collect()
}

fn make_process(
    runtime: &Runtime,
    spec: &ContainerSpec,
    filter: Option<&OwnedFd>,
    cgroup: &Cgroup,
    ends: &ProcessEnds,
    control: &OwnedFd,
) -> Result<(Pid, OwnedFd), OsError> {
    let namespaces = spec
        .namespaces
        .join
        .iter()
        .map(|join| OpenNamespace::open(&join.path, join.flag))
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
        program: runtime.program.as_fd(),
        cgroup: cgroup.directory(),
        create: spec.namespaces.create,
        namespaces: &namespaces,
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
            User::Existing(OpenNamespace::open(path, libc::CLONE_NEWUSER as u64)?.fd)
        }
    })
}

/// Gives the group to a container that has a user and a cgroup namespace of its own.
fn delegate_cgroup(cgroup: &Cgroup, namespaces: &Namespaces) -> Result<(), ContainerError> {
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

/// Does what the process may have no right to in the guest.
fn set_up_from_outside(pid: Pid, spec: &ContainerSpec, waiting: &Control) -> Result<(), OsError> {
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

/// Sets how likely the OOM killer is to choose a process. The agent's write also sets how far the
/// process may lower the score itself.
pub fn set_oom_score(pid: Pid, score: i32) -> Result<(), OsError> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    match std::fs::write(&path, score.to_string()) {
        // The process has ended already: its exit is what the caller reports.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("write {score} to {path}")),
    }
}

async fn until_ready(waiting: &Control) -> Result<Option<OwnedFd>, LaunchError> {
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
    runtime: &Runtime,
    id: &ContainerId,
    cgroup: Cgroup,
    (meminfo, disks): (Option<Shown>, DeviceMap),
    streams: ProcessStreams,
    launched: Launched,
) -> Result<Arc<Container>, ContainerError> {
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
    let unshared = [
        (namespaces.unshare_cgroup, libc::CLONE_NEWCGROUP),
        (namespaces.unshare_time, libc::CLONE_NEWTIME),
    ];
    let unshared = unshared
        .into_iter()
        .filter(|(is_own, _)| *is_own)
        .fold(0, |flags, (_, flag)| flags | flag as u64);
    let all = namespaces.create | joined | unshared;
    let container = Arc::new(Container {
        id: id.clone(),
        cgroup,
        init: process,
        state: Mutex::new(State::Created),
        execs: Mutex::new(HashMap::new()),
        waiting: Mutex::new(Some(waiting)),
        defaults,
        filter,
        oom_score_adj,
        _host_dirs: host_dirs,
        _meminfo: meminfo,
        disks,
        namespaces: all & !pid_flag,
        has_pid_namespace: all & pid_flag != 0,
        has_user_namespace: namespaces.user.is_own(),
        owns_pid_namespace: namespaces.owns_pid,
    });
    supervise::init_process(runtime, &container, exit);
    Ok(container)
}

/// Opens the pid namespace of a process.
pub fn pid_namespace_of(pid: u32) -> Result<OpenNamespace, OsError> {
    let path = format!("/proc/{pid}/ns/pid");
    OpenNamespace::open(Path::new(&path), libc::CLONE_NEWPID as u64)
}
