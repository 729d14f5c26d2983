//! The agent's ttrpc service: each method finds the object of its request and calls it.

mod error;
mod host_only;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rvm_protocol::agent as api;
use rvm_protocol::{AGENT_PROTOCOL_VERSION, ContainerId, ExecId, ProcessId};
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

pub use host_only::listen;

use crate::container::{self, AbsentDevices, Container, ContainerError, ExecRequest};
use crate::events::Event;
use crate::process::{Process, Standing};
use crate::sandbox::Sandbox;
use crate::streams::StreamIds;
use crate::{clock, entropy, ports, power, size};
use error::RequestError;
use rvm_sys::error_chain::chain;

/// How long the answer to Shutdown may take to leave the machine before the agent switches it off.
const SHUTDOWN_ANSWER_TIMEOUT: Duration = Duration::from_millis(10);

/// Nanoseconds of CLOCK_BOOTTIME, for the answer to Check. Guests of one template have the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// At the agent's first instruction.
    pub started_ns: u64,
    /// When the agent listened.
    pub ready_ns: u64,
}

pub struct Service {
    sandbox: Sandbox,
    timings: Timings,
}

impl Service {
    pub fn new(sandbox: Sandbox, timings: Timings) -> Arc<Self> {
        Arc::new(Self { sandbox, timings })
    }

    fn container(&self, id: String) -> Result<Arc<Container>, RequestError> {
        Ok(self.sandbox.container(&ContainerId::new(id)?)?)
    }

    fn process(&self, container: String, exec: String) -> Result<Arc<Process>, RequestError> {
        let id = ProcessId::from_wire(container, exec)?;
        let container = self.sandbox.container(&id.container)?;
        Ok(container.process(id.exec.as_ref())?)
    }
}

/// Runs a request to its end even if its connection breaks meanwhile: otherwise a container could
/// be left half made.
async fn to_the_end<T: Send + 'static>(
    request: impl Future<Output = Result<T, RequestError>> + Send + 'static,
) -> Result<T, RequestError> {
    tokio::spawn(request)
        .await
        .unwrap_or(Err(RequestError::Dropped))
}

/// Kills a process when it is dropped, unless another process of the host stands for it by then:
/// ttrpc drops a request whose connection has closed.
struct KillOnHangup(Option<(Arc<Process>, Standing)>);

impl KillOnHangup {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnHangup {
    fn drop(&mut self) {
        if let Some((process, standing)) = &self.0
            && process.is_latest(*standing)
            && let Err(error) = process.signal(libc::SIGKILL as u32)
        {
            // It has ended meanwhile.
            log::debug!("process {}: {}", process.pid(), chain(&error));
        }
    }
}

/// The document of a request: in it, or sent over a connection of its own.
async fn document(
    sandbox: &Sandbox,
    inline: Vec<u8>,
    stream: u64,
) -> Result<Vec<u8>, RequestError> {
    if stream == 0 {
        return Ok(inline);
    }
    let received = sandbox.runtime.streams.document(stream).await;
    Ok(received.map_err(ContainerError::from)?)
}

#[async_trait]
impl api::Agent for Service {
    async fn check(
        &self,
        _: &TtrpcContext,
        request: api::CheckRequest,
    ) -> ttrpc::Result<api::CheckResponse> {
        // The mount draws random numbers.
        entropy::credit(&request.seed).map_err(RequestError::from)?;
        self.sandbox.share().map_err(RequestError::from)?;
        Ok(api::CheckResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            init_started_ns: self.timings.started_ns,
            ready_ns: self.timings.ready_ns,
            protocol_version: AGENT_PROTOCOL_VERSION,
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        let sandbox = self.sandbox.clone();
        let container = to_the_end(async move {
            let id = ContainerId::new(request.container_id)?;
            let ids = StreamIds::from(request.stdio.get_or_default());
            let spec = document(&sandbox, request.spec, request.spec_stream).await?;
            let absent = AbsentDevices::new(&request.absent_devices);
            Ok(sandbox.create(&id, (&spec, &absent), &ids).await?)
        });
        let pid = container.await?.init().pid();
        Ok(api::CreateContainerResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: api::StartContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        // The program must not see a network card that is being put away.
        self.sandbox.network.lock().await.settle().await;
        to_the_end(async move { Ok(container.start().await?) }).await?;
        Ok(api::Empty::default())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::ExecProcessResponse> {
        let sandbox = self.sandbox.clone();
        let process = to_the_end(async move {
            let container = sandbox.container(&ContainerId::new(request.container_id)?)?;
            let ids = StreamIds::from(request.stdio.get_or_default());
            let process = document(&sandbox, request.process, request.process_stream);
            let exec = ExecRequest {
                id: ExecId::new(request.exec_id)?,
                process: &process.await?,
                streams: &ids,
                ignore_paused: request.ignore_paused,
                cgroup: &request.cgroup,
            };
            Ok(container::exec(&sandbox.runtime, &container, &exec).await?)
        });
        let pid = process.await?.pid();
        Ok(api::ExecProcessResponse {
            pid,
            ..Default::default()
        })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: api::SignalProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        if request.all {
            let signal = request.signal;
            to_the_end(async move { Ok(container.signal_all(signal).await?) }).await?;
        } else {
            let exec = ExecId::new(request.exec_id).ok();
            container
                .signal(exec.as_ref(), request.signal)
                .map_err(RequestError::from)?;
        }
        Ok(api::Empty::default())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::WaitProcessRequest,
    ) -> ttrpc::Result<api::WaitProcessResponse> {
        let process = self.process(request.container_id, request.exec_id)?;
        let stand = || (process.clone(), process.standing());
        let hangup = KillOnHangup(request.kill_on_hangup.then(stand));
        let exit = process.wait().await.map_err(RequestError::from)?;
        hangup.disarm();
        Ok(api::WaitProcessResponse {
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            oom_killed: exit.oom_killed,
            ..Default::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: api::ResizeTerminalRequest,
    ) -> ttrpc::Result<api::Empty> {
        let process = self.process(request.container_id, request.exec_id)?;
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        process
            .resize(size(request.rows), size(request.cols))
            .map_err(RequestError::from)?;
        Ok(api::Empty::default())
    }

    async fn remove_process(
        &self,
        _: &TtrpcContext,
        request: api::RemoveProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        let exec = ExecId::new(request.exec_id).ok();
        self.container(request.container_id)?
            .remove_exec(exec.as_ref())
            .map_err(RequestError::from)?;
        Ok(api::Empty::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: api::ListProcessesRequest,
    ) -> ttrpc::Result<api::ListProcessesResponse> {
        let container = self.container(request.container_id)?;
        Ok(container.processes().await.map_err(RequestError::from)?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: api::PauseContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        to_the_end(async move { Ok(container.pause().await?) }).await?;
        Ok(api::Empty::default())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: api::ResumeContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        to_the_end(async move { Ok(container.resume().await?) }).await?;
        Ok(api::Empty::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        let updated = container.update(&request.resources);
        updated.map_err(RequestError::from)?;
        Ok(api::Empty::default())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        Ok(self.container(request.container_id)?.stats())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: api::RemoveContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            let id = ContainerId::new(request.container_id)?;
            Ok(sandbox.remove(&id).await?)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn write_back(
        &self,
        _: &TtrpcContext,
        _: api::WriteBackRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            sandbox.write_back().await;
            Ok(())
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: api::EventsRequest,
        stream: ServerStreamSender<api::Event>,
    ) -> ttrpc::Result<()> {
        let mut events = self.sandbox.runtime.events.subscribe();
        while let Some(event) = events.recv().await {
            stream.send(&to_api(event)).await?;
        }
        Ok(())
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: api::ConfigureNetworkRequest,
    ) -> ttrpc::Result<api::Empty> {
        let network = self.sandbox.network.clone();
        to_the_end(async move { Ok(network.lock().await.configure(request).await?) }).await?;
        Ok(api::Empty::default())
    }

    async fn relay_names(
        &self,
        _: &TtrpcContext,
        request: api::RelayNamesRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            let streams = &sandbox.runtime.streams;
            let relayed = sandbox.names.relay(streams, request.stream).await;
            relayed.map_err(RequestError::RelayNames)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn forward(
        &self,
        _: &TtrpcContext,
        request: api::ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            // A larger number is no port; nothing listens at 0.
            let port = u16::try_from(request.port).unwrap_or(0);
            let streams = &sandbox.runtime.streams;
            let forwarded = ports::forward(streams, port, request.stream).await;
            forwarded.map_err(RequestError::Forward)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn update_volume(
        &self,
        _: &TtrpcContext,
        request: api::UpdateVolumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            let container = ContainerId::new(request.container_id.as_str())?;
            Ok(sandbox.update_volume(&container, &request).await?)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn mount_disks(
        &self,
        _: &TtrpcContext,
        request: api::MountDisksRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            let container = ContainerId::new(request.container_id.as_str())?;
            Ok(sandbox.mount_disks(&container, &request).await?)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: api::ResizeRequest,
    ) -> ttrpc::Result<api::Empty> {
        to_the_end(async move {
            if request.has_memory_device {
                size::bind_memory_device()?;
            }
            Ok(size::set_cpus(request.cpus)?)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn adopt_container(
        &self,
        _: &TtrpcContext,
        request: api::AdoptContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.container(request.container_id)?;
        container.init().adopt();
        let named = container.set_hostname(&request.hostname);
        named.map_err(RequestError::from)?;
        Ok(api::Empty::default())
    }

    async fn adjust_clock(
        &self,
        _: &TtrpcContext,
        request: api::AdjustClockRequest,
    ) -> ttrpc::Result<api::AdjustClockResponse> {
        let now_ns =
            clock::adjust(request.offset_ns, request.gradual).map_err(RequestError::from)?;
        Ok(api::AdjustClockResponse {
            now_ns,
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        _: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move {
            sandbox.shut_down().await;
            Ok(())
        })
        .await?;
        tokio::spawn(async {
            tokio::time::sleep(SHUTDOWN_ANSWER_TIMEOUT).await;
            power::off();
        });
        Ok(api::Empty::default())
    }
}

fn to_api(event: Event) -> api::Event {
    let mut message = api::Event::new();
    match event {
        Event::Exit { id, pid, exit } => message.set_exit(api::Exit {
            exec_id: id.exec_on_wire().to_owned(),
            container_id: id.container.into(),
            pid,
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            ..Default::default()
        }),
        Event::Oom(container) => {
            message.set_oom(api::Oom {
                container_id: container.into(),
                ..Default::default()
            });
        }
    }
    message
}
