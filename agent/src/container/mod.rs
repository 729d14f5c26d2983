//! Containers: how they are made, joined and ended.

pub mod cgroup;
mod create;
mod devices;
mod exec;
mod idmap;
mod launch;
mod mount_options;
mod pause;
mod preparing;
mod processes;
mod seccomp;
mod spec;
mod state;
mod stats;
mod supervise;
mod update;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use create::create;
pub use exec::{ExecOrder, exec};
pub use preparing::LaunchError;
pub use seccomp::FilterError;
pub use spec::SpecError;
pub use state::{Operation, State, StateError};

use crate::error::AgentError;
use crate::host_dirs::HostDir;
use crate::init::plan::ProcessPlan;
use crate::process::{Process, check_signal};
use cgroup::Cgroup;
use preparing::Preparing;

/// An exec'd process of a container.
enum Exec {
    /// Its id is taken, nothing more yet.
    Starting,
    Started(Arc<Process>),
}

/// A container whose first process exists.
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: Arc<Process>,
    /// Taken before `execs`, where both are needed.
    state: Mutex<State>,
    execs: Mutex<HashMap<String, Exec>>,
    /// The conversation with the first process, until it has been told to start.
    waiting: Mutex<Option<Preparing>>,
    /// What an exec'd process has by default.
    defaults: ProcessPlan,
    filter: Option<OwnedFd>,
    oom_score_adj: i32,
    /// The namespaces that an exec'd process joins, as `CLONE_NEW*`, without pid.
    namespaces: u64,
    /// Whether processes are born into a pid namespace of the container's.
    has_pid_namespace: bool,
    has_user_namespace: bool,
    /// Whether the kernel ends every process with the first.
    owns_pid_namespace: bool,
    /// They stay mounted for it.
    _host_dirs: Vec<Arc<HostDir>>,
}

impl Container {
    /// The first process.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_execs(&self) -> MutexGuard<'_, HashMap<String, Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the first process execute its program, and returns when it has.
    pub async fn start(&self) -> Result<(), AgentError> {
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

    /// Finds a process: the first one for an empty id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, AgentError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        match self.lock_execs().get(exec_id) {
            Some(Exec::Started(process)) => Ok(process.clone()),
            _ => Err(AgentError::NoSuchExec(exec_id.to_owned())),
        }
    }

    /// Signals one process.
    pub fn signal(&self, exec_id: &str, number: u32) -> Result<(), AgentError> {
        let process = self.process(exec_id)?;
        if exec_id.is_empty() {
            state::permit(*self.lock_state(), Operation::Signal)?;
        }
        Ok(process.signal(number)?)
    }

    /// Signals every process of the container, also those that remain of a stopped one.
    pub async fn signal_all(&self, number: u32) -> Result<(), AgentError> {
        check_signal(number)?;
        Ok(self.cgroup.signal_all(number).await?)
    }

    /// Forgets an exec'd process that has ended.
    pub fn remove_exec(&self, exec_id: &str) -> Result<(), AgentError> {
        let process = self.process(exec_id)?;
        if exec_id.is_empty() || !process.has_finished() {
            return Err(AgentError::ExecNotFinished(exec_id.to_owned()));
        }
        self.lock_execs().remove(exec_id);
        Ok(())
    }

    /// Kills what is left and removes the cgroup. Returns when every process of the container has
    /// been accounted for.
    pub async fn remove(&self) -> Result<(), AgentError> {
        state::permit(*self.lock_state(), Operation::Remove)?;
        self.cgroup.remove().await?;
        // Its end is on the way; it is to be told before the container is gone.
        self.init.wait().await?;
        Ok(())
    }

    /// Takes an exec id, if the container can be joined.
    fn reserve_exec(&self, exec_id: &str, ignore_paused: bool) -> Result<(), AgentError> {
        let state = self.lock_state();
        let operation = match ignore_paused {
            true => Operation::ExecWhenResumed,
            false => Operation::Exec,
        };
        state::permit(*state, operation)?;
        let mut execs = self.lock_execs();
        if execs.contains_key(exec_id) {
            return Err(AgentError::ExecExists(exec_id.to_owned()));
        }
        execs.insert(exec_id.to_owned(), Exec::Starting);
        Ok(())
    }
}
