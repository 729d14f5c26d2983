//! The agent's ttrpc service: each method finds its object and says what it said.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rvm_protocol::agent as api;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::container::ExecOrder;
use crate::error::AgentError;
use crate::events::Event;
use crate::ports;
use crate::power;
use crate::reaper::Exit;
use crate::sandbox::Sandbox;
use crate::size;
use crate::streams::StreamIds;

/// How long the answer to Shutdown may take to leave the machine before it is switched off.
const LAST_WORDS: Duration = Duration::from_millis(10);

/// Nanoseconds of CLOCK_BOOTTIME, when the agent began and when it could be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Its first instruction.
    pub started_ns: u64,
    /// It listens.
    pub ready_ns: u64,
}

/// What to do when the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterShutdown {
    /// Switch it off.
    PowerOff,
    /// Nothing: it is not a machine of ours.
    StayUp,
}

/// The service.
pub struct Service {
    sandbox: Sandbox,
    timings: Timings,
    after_shutdown: AfterShutdown,
}

impl Service {
    /// Serves a sandbox.
    pub fn new(sandbox: Sandbox, timings: Timings, after_shutdown: AfterShutdown) -> Arc<Self> {
        Arc::new(Self {
            sandbox,
            timings,
            after_shutdown,
        })
    }
}

/// Runs a request to its end even if the connection that it came on breaks meanwhile: a container
/// half made would be neither there nor gone.
async fn to_the_end<T: Send + 'static>(
    request: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    tokio::spawn(request)
        .await
        .unwrap_or(Err(AgentError::Dropped))
}

#[async_trait]
impl api::Agent for Service {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: api::CheckRequest,
    ) -> ttrpc::Result<api::CheckResponse> {
        Ok(api::CheckResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            init_started_ns: self.timings.started_ns,
            ready_ns: self.timings.ready_ns,
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
            let ids = StreamIds::from(request.stdio.get_or_default());
            sandbox
                .create(&request.container_id, &request.spec, &ids)
                .await
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
        let container = self.sandbox.container(&request.container_id)?;
        // The program sees no card that is not its own.
        self.sandbox.network.lock().await.settle().await;
        to_the_end(async move { container.start().await }).await?;
        Ok(api::Empty::default())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::ExecProcessResponse> {
        let sandbox = self.sandbox.clone();
        let process = to_the_end(async move {
            let container = sandbox.container(&request.container_id)?;
            if request.exec_id.is_empty() {
                return Err(AgentError::ExecExists(request.exec_id));
            }
            let ids = StreamIds::from(request.stdio.get_or_default());
            let order = ExecOrder {
                id: &request.exec_id,
                process: &request.process,
                streams: &ids,
                ignore_paused: request.ignore_paused,
                cgroup: &request.cgroup,
            };
            crate::container::exec(&sandbox, &container, &order).await
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
        let container = self.sandbox.container(&request.container_id)?;
        if request.all {
            let signal = request.signal;
            to_the_end(async move { container.signal_all(signal).await }).await?;
        } else {
            container.signal(&request.exec_id, request.signal)?;
        }
        Ok(api::Empty::default())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: api::WaitProcessRequest,
    ) -> ttrpc::Result<api::WaitProcessResponse> {
        let process = self
            .sandbox
            .container(&request.container_id)?
            .process(&request.exec_id)?;
        let Exit { status, at_ns } = process.wait().await.map_err(AgentError::from)?;
        Ok(api::WaitProcessResponse {
            exit_status: status,
            exited_at_ns: at_ns,
            ..Default::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: api::ResizeTerminalRequest,
    ) -> ttrpc::Result<api::Empty> {
        let process = self
            .sandbox
            .container(&request.container_id)?
            .process(&request.exec_id)?;
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        process
            .resize(size(request.rows), size(request.cols))
            .map_err(AgentError::from)?;
        Ok(api::Empty::default())
    }

    async fn remove_process(
        &self,
        _: &TtrpcContext,
        request: api::RemoveProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.sandbox
            .container(&request.container_id)?
            .remove_exec(&request.exec_id)?;
        Ok(api::Empty::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: api::ListProcessesRequest,
    ) -> ttrpc::Result<api::ListProcessesResponse> {
        let container = self.sandbox.container(&request.container_id)?;
        Ok(container.processes().await?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: api::PauseContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        to_the_end(async move { container.pause().await }).await?;
        Ok(api::Empty::default())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: api::ResumeContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        to_the_end(async move { container.resume().await }).await?;
        Ok(api::Empty::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: api::UpdateContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        container.update(&request.resources)?;
        Ok(api::Empty::default())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        Ok(self.sandbox.container(&request.container_id)?.stats())
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: api::RemoveContainerRequest,
    ) -> ttrpc::Result<api::Empty> {
        let sandbox = self.sandbox.clone();
        to_the_end(async move { sandbox.remove(&request.container_id).await }).await?;
        Ok(api::Empty::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: api::EventsRequest,
        stream: ServerStreamSender<api::Event>,
    ) -> ttrpc::Result<()> {
        let mut events = self.sandbox.events.subscribe();
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
            let relayed = sandbox.names.relay(&sandbox.streams, request.stream).await;
            relayed.map_err(AgentError::Names)
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
            // No other port has a listener.
            let port = u16::try_from(request.port).unwrap_or(0);
            let forwarded = ports::forward(&sandbox.streams, port, request.stream).await;
            forwarded.map_err(AgentError::Forward)
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
        to_the_end(async move { sandbox.update_volume(&request).await }).await?;
        Ok(api::Empty::default())
    }

    async fn resize(
        &self,
        _: &TtrpcContext,
        request: api::ResizeRequest,
    ) -> ttrpc::Result<api::Empty> {
        to_the_end(async move {
            if request.has_memory_device {
                size::take_memory_device()?;
            }
            Ok(size::set_cpus(request.cpus)?)
        })
        .await?;
        Ok(api::Empty::default())
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        _: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        let (sandbox, after) = (self.sandbox.clone(), self.after_shutdown);
        to_the_end(async move {
            sandbox.shut_down().await;
            Ok(())
        })
        .await?;
        if after == AfterShutdown::PowerOff {
            tokio::spawn(async {
                tokio::time::sleep(LAST_WORDS).await;
                power::off();
            });
        }
        Ok(api::Empty::default())
    }
}

fn to_api(event: Event) -> api::Event {
    let mut message = api::Event::new();
    match event {
        Event::Exit {
            container_id,
            exec_id,
            pid,
            exit,
        } => message.set_exit(api::Exit {
            container_id,
            exec_id,
            pid,
            exit_status: exit.status,
            exited_at_ns: exit.at_ns,
            ..Default::default()
        }),
        Event::Oom { container_id } => {
            message.set_oom(api::Oom {
                container_id,
                ..Default::default()
            });
        }
    }
    message
}
