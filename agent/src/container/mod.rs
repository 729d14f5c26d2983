//! Containers: how they are made, joined and ended.

mod control;
mod create;
mod devices;
mod error;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
mod hostname;
mod idmap;
mod launch;
mod mount_options;
mod pause;
mod processes;
mod runtime;
mod seccomp;
mod spec;
mod state;
mod stats;
mod supervise;
mod update;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rvm_protocol::{ContainerId, ExecId};

pub use control::LaunchError;
pub use create::create;
pub use devices::AbsentDevices;
pub use error::ContainerError;
pub use exec::{ExecRequest, exec};
pub use runtime::Runtime;
pub use seccomp::FilterError;
#[cfg(any(test, feature = "fuzzing"))]
pub use seccomp::hostile as seccomp_hostile;
pub use spec::SpecError;
pub use state::{Operation, State, StateError};

use crate::cgroup::Cgroup;
use crate::disks::DeviceMap;
use crate::init::plan::ProcessPlan;
use crate::meminfo::Shown;
use crate::process::{Process, check_signal};
use crate::volumes::HostDir;
use control::Control;

/// A process that was added to a container.
enum Exec {
    /// The id is reserved.
    Starting,
    Started(Arc<Process>),
}

/// A container whose init process exists.
pub struct Container {
    id: ContainerId,
    cgroup: Cgroup,
    init: Arc<Process>,
    /// Locked before `execs`, where both are needed.
    state: Mutex<State>,
    execs: Mutex<HashMap<ExecId, Exec>>,
    /// The socket to the init process, until StartContainer.
    waiting: Mutex<Option<Control>>,
    /// What an exec'd process has by default.
    defaults: ProcessPlan,
    filter: Option<OwnedFd>,
    oom_score_adj: i32,
    /// The namespaces that an exec'd process joins, as `CLONE_NEW*`, without pid.
    namespaces: u64,
    /// Whether processes are born into a pid namespace of the container's.
    has_pid_namespace: bool,
    has_user_namespace: bool,
    /// Whether the kernel ends every process with the init process.
    owns_pid_namespace: bool,
    /// The host's directories stay mounted as long as the container exists.
    _host_dirs: Vec<Arc<HostDir>>,
    _meminfo: Option<Shown>,
    /// The disks that its limits may name.
    disks: DeviceMap,
}

impl Container {
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_execs(&self) -> MutexGuard<'_, HashMap<ExecId, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the init process execute the program, and returns when it has.
    pub async fn start(&self) -> Result<(), ContainerError> {
        let waiting = {
            let mut state = self.lock_state();
            state::permit(*state, Operation::Start)?;
            *state = State::Running;
            self.waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        };
        match waiting {
            Some(waiting) => Ok(waiting.start().await?),
            None => Err(StateError::AlreadyRunning.into()),
        }
    }

    /// Finds a process; the init process is `None`.
    pub fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>, ContainerError> {
        let Some(id) = exec else {
            return Ok(self.init.clone());
        };
        match self.lock_execs().get(id) {
            Some(Exec::Started(process)) => Ok(process.clone()),
            _ => Err(ContainerError::NoSuchExec(id.clone())),
        }
    }

    /// Signals one process; the init process is `None`.
    pub fn signal(&self, exec: Option<&ExecId>, number: u32) -> Result<(), ContainerError> {
        let process = self.process(exec)?;
        if exec.is_none() {
            state::permit(*self.lock_state(), Operation::Signal)?;
        }
        Ok(process.signal(number)?)
    }

    /// Signals every process of the container, also those that remain of a stopped one.
    pub async fn signal_all(&self, number: u32) -> Result<(), ContainerError> {
        check_signal(number)?;
        Ok(self.cgroup.signal_all(number).await?)
    }

    /// Forgets an exec'd process that has ended. The init process goes with its container only.
    pub fn remove_exec(&self, exec: Option<&ExecId>) -> Result<(), ContainerError> {
        let process = self.process(exec)?;
        match exec {
            Some(id) if process.has_finished() => {
                self.lock_execs().remove(id);
                Ok(())
            }
            _ => {
                let id = exec.map_or("", ExecId::as_str);
                Err(ContainerError::ExecNotFinished(id.to_owned()))
            }
        }
    }

    /// Kills the remaining processes and removes the cgroup. Returns when the init process's exit
    /// has been published.
    pub async fn remove(&self) -> Result<(), ContainerError> {
        state::permit(*self.lock_state(), Operation::Remove)?;
        self.cgroup.remove().await?;
        // Subscribers receive the exit before the container is gone.
        self.init.wait().await?;
        Ok(())
    }

    /// Reserves an exec id, if the container can be joined.
    fn reserve_exec(&self, id: &ExecId, ignore_paused: bool) -> Result<(), ContainerError> {
        let state = self.lock_state();
        let operation = match ignore_paused {
            true => Operation::ExecWhenResumed,
            false => Operation::Exec,
        };
        state::permit(*state, operation)?;
        let mut execs = self.lock_execs();
        if execs.contains_key(id) {
            return Err(ContainerError::ExecExists(id.clone()));
        }
        execs.insert(id.clone(), Exec::Starting);
        Ok(())
    }
}
