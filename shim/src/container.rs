//! A container, as containerd's task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::Status as TaskStatus;
use oci_spec::runtime::{LinuxResources, Process as Program};
use rvm_protocol::agent::StatsResponse;
use rvm_protocol::{ExecId, ProcessId};
use rvm_sandbox::anchor::PidAnchor;
use rvm_sandbox::container::lifecycle::{self, LifecycleError};
use rvm_sandbox::container::running::{self, Observed};
use rvm_sandbox::container::update;
use rvm_sandbox::guest::agent::{Agent, Exec};
use rvm_sandbox::guest::stdio::Relay;
use rvm_sandbox::host::process::ProcessId as HostProcess;
use rvm_sandbox::sandbox::Guest;
use rvm_sandbox::state::{self, Status};

use crate::error::{ShimError, chain};
use crate::launch::ADDRESS_FILE;
use crate::logger::Logger;
use crate::pod::Announce;
use crate::process::{Ended, Process};
use crate::stdio::{self, Uris};

/// How long added processes may take to end once the first has, which ends them.
const EXECS_LIMIT: Duration = Duration::from_secs(5);

/// What copies a process's output, until there is no more.
pub struct Output {
    /// The streams.
    pub relay: Relay,
    /// The program that takes them.
    pub logger: Option<Logger>,
}

/// A container.
pub struct Container {
    /// Its state on disk.
    pub record: Arc<state::Container>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What it runs in.
    pub guest: Arc<Guest>,
    /// Whether the sandbox was made for it, and ends with it.
    pub owns_sandbox: bool,
    /// What containerd is told of it.
    pub announce: Announce,
    /// Its first process.
    pub init: Arc<Process>,
    /// Processes that were added to it.
    pub execs: Execs,
}

/// Added processes by id.
#[derive(Default)]
pub struct Execs(Mutex<BTreeMap<String, Arc<Process>>>);

impl Execs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Process>> {
        self.lock().values().cloned().collect()
    }

    /// Returns when all that were started have ended.
    pub async fn ended(&self) {
        let running = self.all().into_iter().filter(|exec| exec.pid() != 0);
        let all = async {
            for exec in running {
                exec.wait().await;
            }
        };
        if tokio::time::timeout(EXECS_LIMIT, all).await.is_err() {
            tracing::warn!("a process has outlived its container's first");
        }
    }
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        self.record.id().as_str()
    }

    /// A process's id, as the agent knows it.
    pub fn guest_id(&self, process: &Process) -> ProcessId {
        ProcessId {
            container: self.record.id().clone(),
            exec: exec_id(process).ok(),
        }
    }

    fn agent(&self) -> &Agent {
        self.guest.agent()
    }

    /// Finds a process: the first one for an empty id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, ShimError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs.lock();
        let found = execs.get(exec_id).cloned();
        found.ok_or_else(|| ShimError::no_process(exec_id))
    }

    /// Where a process's life stands.
    pub fn status(&self, process: &Process) -> Result<TaskStatus, ShimError> {
        if process.ended().is_some() {
            return Ok(TaskStatus::STOPPED);
        }
        if !process.id.is_empty() {
            return Ok(match process.pid() {
                0 => TaskStatus::CREATED,
                _ => TaskStatus::RUNNING,
            });
        }
        Ok(match self.record.state()?.status {
            Status::Creating | Status::Created => TaskStatus::CREATED,
            Status::Running => TaskStatus::RUNNING,
            Status::Paused => TaskStatus::PAUSED,
            // It is about to be told.
            Status::Stopped => TaskStatus::RUNNING,
        })
    }

    /// Adds a process that is not started yet.
    pub fn add_exec(&self, id: &str, uris: Uris, program: Program) -> Result<(), ShimError> {
        if self.init.ended().is_some() {
            return Err(ShimError::Unfit(format!(
                "container {} is not running",
                self.id()
            )));
        }
        let mut execs = self.execs.lock();
        if id.is_empty() || execs.contains_key(id) {
            return Err(ShimError::Exists(format!("process {id:?}")));
        }
        let process = Process::added(id, uris, program);
        execs.insert(id.to_owned(), Arc::new(process));
        Ok(())
    }

    /// Forgets an added process.
    pub async fn remove_exec(&self, process: &Process) -> Result<(), ShimError> {
        if process.pid() != 0 {
            if process.ended().is_none() {
                return Err(ShimError::Unfit(
                    "cannot delete a running process".to_owned(),
                ));
            }
            let id = exec_id(process)?;
            let removed = self.agent().remove_process(self.record.id(), &id).await;
            if let Err(error) = removed {
                // Gone with its container or its machine.
                tracing::debug!("process {}: {error}", process.id);
            }
        }
        self.execs.lock().remove(&process.id);
        Ok(())
    }

    /// Starts an added process.
    pub async fn start_exec(
        &self,
        process: &Process,
        namespace: &str,
    ) -> Result<Output, ShimError> {
        let Some(program) = &process.program else {
            return Err(ShimError::no_process(&process.id));
        };
        if self.init.ended().is_some() {
            let id = self.id();
            return Err(ShimError::Unfit(format!("container {id} is not running")));
        }
        if process.pid() != 0 {
            return Err(ShimError::Unfit("process already started".to_owned()));
        }
        let opened = stdio::open(&process.uris, self.id(), namespace)?;
        let (relay, stdio) = Relay::start(self.guest.dir(), opened.host)?;
        let exec = Exec {
            container: self.record.id(),
            id: &exec_id(process)?,
            process: program,
            stdio,
            ignore_paused: false,
            cgroup: "",
        };
        let pid = self.agent().exec(exec).await?;
        process.set_pid(pid);
        process.keep_stdin(opened.keeper);
        Ok(Output {
            relay,
            logger: opened.logger,
        })
    }

    /// Starts its first process.
    pub async fn start(&self) -> Result<(), ShimError> {
        Ok(lifecycle::start(&self.record).await?)
    }

    /// Signals a process, or all of them.
    pub async fn kill(&self, process: &Process, signal: u32, all: bool) -> Result<(), ShimError> {
        if process.ended().is_some() {
            return Err(ShimError::finished());
        }
        let signal = i32::try_from(signal)
            .map_err(|_| ShimError::Invalid(format!("unknown signal {signal}")))?;
        if !process.id.is_empty() {
            if process.pid() == 0 {
                return Err(ShimError::Unfit("process not started".to_owned()));
            }
            let agent = self.agent();
            return Ok(agent.signal(&self.guest_id(process), signal).await?);
        }
        match lifecycle::kill(&self.record, signal, all).await {
            // It has ended in between.
            Err(LifecycleError::FailedPrecondition(_)) => Err(ShimError::finished()),
            other => Ok(other?),
        }
    }

    /// Makes every process stand still.
    pub async fn pause(&self) -> Result<(), ShimError> {
        Ok(running::pause(&self.record).await?)
    }

    /// Lets them go on.
    pub async fn resume(&self) -> Result<(), ShimError> {
        Ok(running::resume(&self.record).await?)
    }

    /// Changes its limits.
    pub async fn update(&self, resources: &LinuxResources) -> Result<(), ShimError> {
        Ok(update::update(&self.record, resources).await?)
    }

    /// Its processes, as the guest numbers them. One that has ended keeps its first process's number
    /// until it is deleted: after a restart, containerd from 1.7 on takes a container with no process
    /// for one that was never made, ends its shim, and never learns how it ended.
    pub async fn pids(&self) -> Result<Vec<u32>, ShimError> {
        if self.init.ended().is_some() {
            return Ok(vec![self.init.pid()]);
        }
        let list = running::processes(&self.record).await?;
        Ok(list.processes.iter().map(|process| process.pid).collect())
    }

    /// What it has used of the guest.
    pub async fn stats(&self) -> Result<StatsResponse, ShimError> {
        Ok(Observed::new(&self.record)?.stats().await?)
    }

    /// What it costs the host, with its machine.
    pub fn cost(&self) -> Result<StatsResponse, ShimError> {
        match self.record.state()?.cgroup {
            Some(cgroup) => Ok(cgroup.stats()),
            None => Err(ShimError::Unfit("there are no control groups".to_owned())),
        }
    }

    /// Sets the size of a process's terminal.
    pub async fn resize(
        &self,
        process: &Process,
        height: u32,
        width: u32,
    ) -> Result<(), ShimError> {
        let side = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let (rows, cols) = (side(height), side(width));
        let agent = self.agent();
        let id = self.guest_id(process);
        Ok(agent.resize_terminal(&id, rows, cols).await?)
    }

    /// Takes away everything that was made for it. It must not run.
    pub async fn remove(&self) -> Result<(), ShimError> {
        lifecycle::delete(&self.record, true).await?;
        crate::rootfs::unmount_all(&self.bundle)?;
        forget_state(&self.bundle);
        Ok(())
    }
}

/// The id of an added process.
fn exec_id(process: &Process) -> Result<ExecId, ShimError> {
    ExecId::new(&*process.id).map_err(|_| ShimError::no_process(&process.id))
}

/// The file in a bundle that says where the container's state is.
const STATE_FILE: &str = "rvm-state";

/// Writes down where a container's state is, for `delete` to find, and there where its shim's socket is,
/// for those to find that have no bundle.
pub fn remember_state(bundle: &Path, record: &state::Container) -> std::io::Result<()> {
    if let Ok(address) = std::fs::read(bundle.join(ADDRESS_FILE)) {
        std::fs::write(record.path().join(ADDRESS_FILE), address)?;
    }
    let path = record.path().to_string_lossy().into_owned();
    std::fs::write(bundle.join(STATE_FILE), path)
}

/// Where a container's state is, if it ever came so far.
pub fn find_state(bundle: &Path) -> Option<PathBuf> {
    let path = std::fs::read_to_string(bundle.join(STATE_FILE)).ok()?;
    Some(path.into())
}

fn forget_state(bundle: &Path) {
    // containerd removes the bundle in any case.
    let _ = std::fs::remove_file(bundle.join(STATE_FILE));
}

/// From now on the container is this process's.
pub fn claim(record: &state::Container, anchor: &PidAnchor) -> Result<(), ShimError> {
    let own = HostProcess::own().map_err(|source| ShimError::Own {
        action: "find out the own pid",
        source,
    })?;
    let locked = record.lock()?;
    locked.claim(own)?;
    let mut state = locked.load()?;
    state.stand_in = Some(anchor.pid());
    Ok(locked.save(&state)?)
}

/// Writes down that a container has ended.
pub fn stopped(record: &state::Container, ended: Ended) {
    let status = u8::try_from(ended.status).ok();
    let step = record
        .lock()
        .and_then(|locked| locked.step(Status::Stopped, |state| state.exit_status = status));
    if let Err(error) = step {
        tracing::warn!("container {}: {}", record.id(), chain(&error));
    }
}
