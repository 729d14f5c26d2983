//! Calls for whole containers and for the sandbox.

use oci_spec::runtime::LinuxResources;
use rvm_protocol::ContainerId;
use rvm_protocol::agent::{
    Event, EventsRequest, ListProcessesRequest, ListProcessesResponse, PauseContainerRequest,
    RemoveContainerRequest, ResizeRequest, ResumeContainerRequest, ShutdownRequest,
    SignalProcessRequest, StatsRequest, StatsResponse, UpdateContainerRequest, UpdateVolumeRequest,
};
use ttrpc::r#async::ClientStreamReceiver;

use super::{Agent, AgentError, clean, failed, limited, unlimited};

impl Agent {
    /// Lists the processes of a container. The texts have no control characters.
    pub async fn processes(&self, id: &ContainerId) -> Result<ListProcessesResponse, AgentError> {
        let request = ListProcessesRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.0.list_processes(limited(), &request).await;
        let mut answer = answer.map_err(failed("list processes"))?;
        for process in &mut answer.processes {
            process.terminal = clean(&process.terminal);
            process.command = clean(&process.command);
            process.name = clean(&process.name);
            process.state = clean(&process.state);
        }
        Ok(answer)
    }

    /// Replaces the contents of the guest's copy of a volume.
    pub async fn update_volume(&self, request: &UpdateVolumeRequest) -> Result<(), AgentError> {
        let answer = self.0.update_volume(limited(), request).await;
        answer.map(|_| ()).map_err(failed("update volume"))
    }

    /// Signals every process of a container.
    pub async fn signal_all(&self, id: &ContainerId, signal: i32) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: id.to_string(),
            signal: signal.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        let answer = self.0.signal_process(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("signal process"))
    }

    /// Freezes the processes of a container, and returns when they are frozen.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = PauseContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.0.pause_container(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("pause container"))
    }

    /// Thaws the processes of a paused container.
    pub async fn resume(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = ResumeContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.0.resume_container(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("resume container"))
    }

    /// Changes a container's limits in the guest. The agent ignores device rules.
    pub async fn update(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: id.to_string(),
            resources: serde_json::to_vec(resources)?,
            ..Default::default()
        };
        let answer = self.0.update_container(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("update container"))
    }

    /// A container's resource use in the guest.
    pub async fn stats(&self, id: &ContainerId) -> Result<StatsResponse, AgentError> {
        let request = StatsRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.0
            .stats(limited(), &request)
            .await
            .map_err(failed("stats"))
    }

    /// Adapts the guest to its machine's new size: brings vCPUs online or offline, and binds the
    /// virtio-mem device.
    pub async fn resize_guest(&self, cpus: u8, has_memory_device: bool) -> Result<(), AgentError> {
        let request = ResizeRequest {
            cpus: cpus.into(),
            has_memory_device,
            ..Default::default()
        };
        let answer = self.0.resize(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("resize"))
    }

    /// Kills the remaining processes of a container and removes it from the guest.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = RemoveContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.0.remove_container(limited(), &request).await;
        answer.map(|_| ()).map_err(failed("remove container"))
    }

    /// Ends every container and writes their files back; the machine then powers off.
    pub async fn shut_down(&self) -> Result<(), AgentError> {
        let answer = self.0.shutdown(limited(), &ShutdownRequest::new()).await;
        answer.map(|_| ()).map_err(failed("shutdown"))
    }

    /// Subscribes to the events of the sandbox.
    pub async fn events(&self) -> Result<Events, AgentError> {
        let stream = self.0.events(unlimited(), &EventsRequest::new()).await;
        stream.map(Events).map_err(failed("events"))
    }
}

/// Exits and OOM kills of all containers of a sandbox, in order.
pub struct Events(ClientStreamReceiver<Event>);

impl Events {
    /// The next event; None at the end of the stream. An error ends the stream too: the machine has
    /// ended, most likely.
    pub async fn next(&mut self) -> Result<Option<Event>, AgentError> {
        self.0.recv().await.map_err(failed("events"))
    }
}
