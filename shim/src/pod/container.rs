//! A container: one of containerd's tasks, or the pause container of a sandbox.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::api::Status as TaskStatus;
use oci_spec::runtime::{LinuxResources, Process as Program};
use rvm_protocol::agent::StatsResponse;
use rvm_protocol::{ContainerId, ExecId};
use rvm_sandbox::container::lifecycle::{self, LifecycleError};
use rvm_sandbox::container::running::{self, Observed};
use rvm_sandbox::container::update;
use rvm_sandbox::guest::agent::{Agent, AgentError, Exec};
use rvm_sandbox::guest::document::Document;
use rvm_sandbox::guest::stdio::Relay;
use rvm_sandbox::sandbox::Guest;
use rvm_sandbox::state::{self, Status};
use rvm_sys::error_chain::chain;
use rvm_sys::fault_point;
use tokio::sync::watch;

use super::error::{CreateError, PodError, Refusal};
use super::execs::Execs;
use super::exit::Exit;
use super::process::Process;
use crate::options::Checkpoint;
use crate::stdio::{self, Uris};
use crate::{bundle, rootfs};

/// Whether containerd knows a container as a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A task, whose events are published.
    Task,
    /// The container that the shim itself puts into a sandbox of the sandbox API. It has no events.
    Pause,
}

/// A container that was created and not deleted.
pub struct Container {
    pub kind: Kind,
    /// Its state on disk.
    pub record: Arc<state::Container>,
    pub bundle: PathBuf,
    pub guest: Arc<Guest>,
    /// Whether the sandbox was made for this container, and ends with it.
    pub owns_sandbox: bool,
    pub init: Arc<Process>,
    pub execs: Execs,
    /// Whether SIGKILL was asked for. The exit is published first then, and before the container's
    /// last files are on the host.
    pub is_killed: watch::Sender<bool>,
    /// Held from the exit until the files are on the host, or late.
    pub settling: tokio::sync::Mutex<()>,
}

impl Container {
    pub fn id(&self) -> &ContainerId {
        self.record.id()
    }

    fn agent(&self) -> &Agent {
        self.guest.agent()
    }

    /// Finds a process: the init process if there is no exec id.
    pub fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>, Refusal> {
        match exec {
            None => Ok(Arc::clone(&self.init)),
            Some(id) => self.execs.find(id),
        }
    }

    /// The state of a process in containerd's terms.
    pub fn status(&self, process: &Process) -> Result<TaskStatus, PodError> {
        if process.exit().is_some() {
            return Ok(TaskStatus::STOPPED);
        }
        if !process.is_init() {
            return Ok(match process.pid() {
                0 => TaskStatus::CREATED,
                _ => TaskStatus::RUNNING,
            });
        }
        Ok(match self.record.state()?.status {
            Status::Creating | Status::Created => TaskStatus::CREATED,
            Status::Running => TaskStatus::RUNNING,
            Status::Paused => TaskStatus::PAUSED,
            // Its exit is about to be published.
            Status::Stopped => TaskStatus::RUNNING,
        })
    }

    /// Adds a process without starting it.
    pub fn add_exec(&self, id: ExecId, uris: Uris, program: Program) -> Result<(), Refusal> {
        self.check_running()?;
        let process = Process::exec(self.id().clone(), id.clone(), uris, program);
        self.execs.add(id, process)
    }

    fn check_running(&self) -> Result<(), Refusal> {
        match self.init.exit() {
            Some(_) => Err(Refusal::NotRunning(self.id().clone())),
            None => Ok(()),
        }
    }

    /// Removes an added process that has ended or was never started.
    pub async fn remove_exec(&self, id: &ExecId, process: &Process) -> Result<(), Refusal> {
        if process.pid() != 0 {
            if process.exit().is_none() {
                return Err(Refusal::ExecRunning);
            }
            let removed = self.agent().remove_process(self.id(), id);
            if let Err(error) = removed.await {
                // Its container or its machine is gone.
                tracing::debug!("process {}: {error}", process.id);
            }
        }
        self.execs.remove(id);
        process.end_logger().await;
        Ok(())
    }

    /// Starts an added process; returns what copies its output.
    pub async fn start_exec(
        &self,
        id: &ExecId,
        process: &Process,
        namespace: &str,
    ) -> Result<Relay, PodError> {
        self.check_running()?;
        let program = match process.program() {
            Some(program) if process.pid() == 0 => program,
            _ => return Err(Refusal::ExecStarted.into()),
        };
        let opened = stdio::open(&process.uris, self.id(), namespace)?;
        fault_point!("shim.exec.streams").map_err(host("connect the streams"))?;
        let (relay, stdio) = Relay::start(self.guest.dir(), opened.host)?;
        let exec = Exec {
            container: self.id(),
            id,
            process: Document::send(self.guest.dir(), program)?,
            stdio,
            ignore_paused: false,
            cgroup: "",
        };
        let pid = self.agent().exec(exec).await?;
        process.set_guest_pid(pid);
        process.hold_stdin(opened.stdin_writer);
        process.hold_logger(opened.logger);
        Ok(relay)
    }

    /// Starts the init process.
    pub async fn start(&self) -> Result<(), PodError> {
        Ok(lifecycle::start(&self.record).await?)
    }

    /// Signals a process; with `all`, every process of the container.
    pub async fn kill(&self, process: &Process, signal: u32, all: bool) -> Result<(), PodError> {
        if process.exit().is_some() {
            return Err(Refusal::Finished.into());
        }
        let signal = i32::try_from(signal).map_err(|_| Refusal::UnknownSignal(signal))?;
        if !process.is_init() {
            if process.pid() == 0 {
                return Err(Refusal::ExecNotStarted.into());
            }
            return match self.agent().signal(&process.id, signal).await {
                Err(AgentError::NotFound(_)) => Err(Refusal::Finished.into()),
                other => Ok(other?),
            };
        }
        if signal == libc::SIGKILL {
            self.is_killed.send_replace(true);
        }
        let record = Arc::clone(&self.record);
        // To its end, even if the client does not wait for it.
        let killing = tokio::spawn(async move { lifecycle::kill(&record, signal, all).await });
        match killing.await.unwrap_or(Ok(())) {
            // It has ended since the check above.
            Err(LifecycleError::FailedPrecondition(_)) => Err(Refusal::Finished.into()),
            other => Ok(other?),
        }
    }

    pub async fn pause(&self) -> Result<(), PodError> {
        Ok(running::pause(&self.record).await?)
    }

    pub async fn resume(&self) -> Result<(), PodError> {
        Ok(running::resume(&self.record).await?)
    }

    /// Writes its machine to a checkpoint.
    pub async fn checkpoint(&self, wanted: &Checkpoint) -> Result<(), PodError> {
        let saved = lifecycle::save(&self.record, &wanted.dir, !wanted.exit);
        saved.await?;
        Ok(())
    }

    /// Changes the limits that `resources` names.
    pub async fn update(&self, resources: &LinuxResources) -> Result<(), PodError> {
        Ok(update::update(&self.record, resources).await?)
    }

    /// The pids of its processes in the guest. A container that has ended keeps its init process's
    /// pid until it is deleted: after a restart, containerd 1.7 and later take a container without
    /// processes for one that was never created, end its shim, and never learn its exit code.
    pub async fn pids(&self) -> Result<Vec<u32>, PodError> {
        if self.init.exit().is_some() {
            return Ok(vec![self.init.pid()]);
        }
        let list = running::processes(&self.record).await?;
        Ok(list.processes.iter().map(|process| process.pid).collect())
    }

    /// What the container uses of the guest.
    pub async fn guest_stats(&self) -> Result<StatsResponse, PodError> {
        if self.init.exit().is_some() {
            return Err(Refusal::NoCgroup(self.id().clone()).into());
        }
        Ok(Observed::new(&self.record).await?.stats().await?)
    }

    /// What the container uses of the host, with its machine.
    pub fn host_stats(&self) -> Result<StatsResponse, PodError> {
        match self.record.state()?.cgroup {
            Some(cgroup) => Ok(cgroup.stats()),
            None => Err(Refusal::NoCgroup(self.id().clone()).into()),
        }
    }

    /// Sets the size of a process's terminal. As in runc's shim, success where there is none:
    /// without a terminal, or before an added process is started.
    pub async fn resize(&self, process: &Process, height: u32, width: u32) -> Result<(), PodError> {
        if process.exit().is_some() {
            return Err(Refusal::ResizeStopped.into());
        }
        if !process.uris.terminal || process.pid() == 0 {
            return Ok(());
        }
        let side = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let (rows, cols) = (side(height), side(width));
        let resized = self.agent().resize_terminal(&process.id, rows, cols);
        Ok(resized.await?)
    }

    /// Writes into the state that the container has ended.
    pub fn record_exit(&self, exit: Exit) {
        let stopped = self.record.lock().and_then(|locked| {
            locked.step(Status::Stopped, |state| {
                state.exit_status = Some(exit.status)
            })
        });
        if let Err(error) = stopped {
            tracing::warn!("container {}: {}", self.id(), chain(&error));
        }
    }

    /// Waits until what the container's processes wrote is on the host, or until that takes too
    /// long or the container is killed.
    pub async fn write_back_unless_killed(&self, exit: Exit) {
        let mut killed = self.is_killed.subscribe();
        tokio::select! {
            () = self.guest.write_back(exit.status) => {}
            _ = killed.wait_for(|killed| *killed) => {}
        }
    }

    /// Removes everything that was made for the container, which must have ended.
    pub async fn remove(&self) -> Result<(), PodError> {
        lifecycle::delete(&self.record, true).await?;
        fault_point!("shim.removed").map_err(host("unmount the root"))?;
        rootfs::unmount_all(&self.bundle)?;
        bundle::forget_state(&self.bundle);
        Ok(())
    }
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> PodError {
    move |source| CreateError::Host { action, source }.into()
}
