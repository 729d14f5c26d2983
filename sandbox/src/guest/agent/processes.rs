//! Calls for single processes: a container's init process, or an exec'd one.

use rvm_protocol::agent::{
    ExecProcessRequest, RemoveProcessRequest, ResizeTerminalRequest, SignalProcessRequest, Stdio,
    WaitProcessRequest,
};
use rvm_protocol::{ContainerId, ExecId, ProcessId};

use super::super::document::Document;
use super::{Agent, AgentError, CALL_TIMEOUT, SIGNAL_TIMEOUT, failed, limited, unlimited, within};

/// A process to add to a container.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's id.
    pub container: &'a ContainerId,
    /// The process's id, unique in the container.
    pub id: &'a ExecId,
    /// The process object of the runtime specification.
    pub process: Document,
    /// The streams that [`Relay`](crate::guest::stdio::Relay) has opened for it.
    pub stdio: Stdio,
    /// Wait for the resume of a paused container, instead of failing.
    pub ignore_paused: bool,
    /// The cgroup in the guest to start in, relative to the container's; empty for the container's.
    pub cgroup: &'a str,
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit status, 128 + n for signal n.
    pub status: u8,
    /// Nanoseconds since the epoch, by the guest's clock.
    pub at_ns: u64,
    /// Of an init process: whether the guest's kernel has killed a process of the container for
    /// want of memory.
    pub oom_killed: bool,
}

impl Exit {
    /// The status of a process that SIGKILL has ended, which is what a shell reports of one.
    pub const KILLED: u8 = 128 + libc::SIGKILL as u8;
}

impl Agent {
    /// Starts a process in a container. Returns its pid in the guest.
    pub async fn exec(&self, exec: Exec<'_>) -> Result<u32, AgentError> {
        let request = ExecProcessRequest {
            container_id: self.id(exec.container),
            exec_id: exec.id.to_string(),
            process: exec.process.inline,
            process_stream: exec.process.stream,
            stdio: Some(exec.stdio).into(),
            ignore_paused: exec.ignore_paused,
            cgroup: exec.cgroup.to_owned(),
            ..Default::default()
        };
        let name = "exec process";
        let call = self.client.exec_process(unlimited(), &request);
        let answer = match exec.ignore_paused {
            // The call may wait for the resume of a paused container.
            true => call.await.map_err(failed(name)),
            false => within(CALL_TIMEOUT, name, call).await,
        };
        Ok(answer?.pid)
    }

    /// Waits until a process has ended, however long that takes.
    pub async fn wait(&self, id: &ProcessId) -> Result<Exit, AgentError> {
        self.wait_for(id, false).await
    }

    /// The same for the process of the host that stands for it: the agent kills the process if the
    /// connection closes before.
    pub async fn stand_for(&self, id: &ProcessId) -> Result<Exit, AgentError> {
        self.wait_for(id, true).await
    }

    async fn wait_for(&self, id: &ProcessId, kill_on_hangup: bool) -> Result<Exit, AgentError> {
        let request = WaitProcessRequest {
            container_id: self.id(&id.container),
            exec_id: id.exec_on_wire().to_owned(),
            kill_on_hangup,
            ..Default::default()
        };
        let answer = self.client.wait_process(unlimited(), &request).await;
        let answer = answer.map_err(failed("wait process"))?;
        Ok(Exit {
            // Only a hostile guest reports a larger one.
            status: u8::try_from(answer.exit_status).unwrap_or(u8::MAX),
            at_ns: answer.exited_at_ns,
            oom_killed: answer.oom_killed,
        })
    }

    /// Signals a process.
    pub async fn signal(&self, id: &ProcessId, signal: i32) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: self.id(&id.container),
            exec_id: id.exec_on_wire().to_owned(),
            signal: signal.unsigned_abs(),
            ..Default::default()
        };
        let call = self.client.signal_process(limited(), &request);
        within(SIGNAL_TIMEOUT, "signal process", call)
            .await
            .map(|_| ())
    }

    /// Sets the terminal size of a process.
    pub async fn resize_terminal(
        &self,
        id: &ProcessId,
        rows: u16,
        cols: u16,
    ) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: self.id(&id.container),
            exec_id: id.exec_on_wire().to_owned(),
            rows: rows.into(),
            cols: cols.into(),
            ..Default::default()
        };
        let call = self.client.resize_terminal(limited(), &request);
        within(CALL_TIMEOUT, "resize terminal", call)
            .await
            .map(|_| ())
    }

    /// Removes an ended exec'd process from the agent's table.
    pub async fn remove_process(
        &self,
        container: &ContainerId,
        id: &ExecId,
    ) -> Result<(), AgentError> {
        let request = RemoveProcessRequest {
            container_id: self.id(container),
            exec_id: id.to_string(),
            ..Default::default()
        };
        let call = self.client.remove_process(limited(), &request);
        within(CALL_TIMEOUT, "remove process", call)
            .await
            .map(|_| ())
    }
}
