//! containerd's Task service.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use rvm_protocol::{ContainerId, ExecId, ProcessId};
use rvm_sandbox::spec::process;
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;

use super::error::ServiceError;
use super::metrics;
use crate::options::Checkpoint;
use crate::pod::Pod;
use crate::pod::container::{Container, Kind};
use crate::pod::process::Process;
use crate::stdio::Uris;

/// The name by which containerd knows the type of [`ProcessDetails`].
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

pub struct TaskService(pub Arc<Pod>);

impl TaskService {
    fn container(&self, id: &str) -> Result<Arc<Container>, ServiceError> {
        Ok(self.0.container(&ContainerId::new(id)?)?)
    }

    /// The container and the process that a request names.
    fn process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(Arc<Container>, Arc<Process>), ServiceError> {
        let id = ProcessId::from_wire(id, exec_id)?;
        let container = self.0.container(&id.container)?;
        let process = container.process(id.exec.as_ref())?;
        Ok((container, process))
    }
}

/// Decodes JSON in a message, such as the types of the runtime specification.
fn from_json<T: DeserializeOwned>(what: &'static str, any: &Any) -> Result<T, ServiceError> {
    serde_json::from_slice(&any.value).map_err(undecodable(what, any))
}

fn undecodable(what: &'static str, any: &Any) -> impl FnOnce(serde_json::Error) -> ServiceError {
    move |source| ServiceError::Decode {
        what,
        kind: any.type_url.clone(),
        source,
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.exit();
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid(),
            status: container.status(&process)?.into(),
            stdin: process.uris.stdin.clone(),
            stdout: process.uris.stdout.clone(),
            stderr: process.uris.stderr.clone(),
            terminal: process.uris.terminal,
            exit_status: exit.map_or(0, |exit| exit.status.into()),
            exited_at: exit.map(|exit| exit.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        if !request.parent_checkpoint.is_empty() {
            return Err(ServiceError::Unimplemented("a checkpoint with a parent").into());
        }
        let id = ContainerId::new(request.id.as_str()).map_err(ServiceError::from)?;
        let container = self.0.create(id, &request, Kind::Task).await?;
        Ok(CreateTaskResponse {
            pid: container.init.pid(),
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        match &process.id.exec {
            None => self.0.start(&container).await?,
            Some(id) => self.0.start_exec(&container, id, &process).await?,
        }
        Ok(StartResponse {
            pid: process.pid(),
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let exit = match &process.id.exec {
            None => Some(self.0.delete(&container).await?),
            Some(id) => {
                container.remove_exec(id, &process).await?;
                process.exit()
            }
        };
        Ok(DeleteResponse {
            pid: process.pid(),
            exit_status: exit.map_or(0, |exit| exit.status.into()),
            exited_at: exit.map(|exit| exit.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let execs = container.execs.all();
        let details = |pid| {
            let exec = execs.iter().find(|exec| exec.pid() == pid)?;
            let details = ProcessDetails {
                exec_id: exec.id.exec_on_wire().to_owned(),
                ..Default::default()
            };
            Some(Any {
                type_url: PROCESS_DETAILS.to_owned(),
                value: details.write_to_bytes().ok()?,
                ..Default::default()
            })
        };
        let processes = container.pids().await?;
        let info = |pid| ProcessInfo {
            pid,
            info: details(pid).into(),
            ..Default::default()
        };
        Ok(PidsResponse {
            processes: processes.into_iter().map(info).collect(),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container.pause().await?;
        let event = TaskPaused {
            container_id: request.id,
            ..Default::default()
        };
        self.0.publish(&container, &event);
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container.resume().await?;
        let event = TaskResumed {
            container_id: request.id,
            ..Default::default()
        };
        self.0.publish(&container, &event);
        Ok(Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let wanted = Checkpoint::parse(&request.path, request.options.get_or_default());
        let wanted = wanted.map_err(ServiceError::from)?;
        self.0.checkpoint(&container, &wanted).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        container
            .kill(&process, request.signal, request.all)
            .await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let spec = request.spec.get_or_default();
        let program = process::from_json(&spec.value).map_err(undecodable("the process", spec))?;
        let uris = Uris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let id = ExecId::new(request.exec_id.as_str()).map_err(ServiceError::from)?;
        container.add_exec(id, uris, program)?;
        let event = TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        self.0.publish(&container, &event);
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        container
            .resize(&process, request.height, request.width)
            .await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let resources = from_json("the resources", request.resources.get_or_default())?;
        container.update(&resources).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status.into(),
            exited_at: Some(exit.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = metrics::encode(&container.guest_stats().await?);
        Ok(StatsResponse {
            stats: Some(stats).into(),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        // containerd also connects before the container exists.
        let container = self.container(&request.id).ok();
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // containerd sends this after each container of a pod.
        if self.0.is_empty() {
            self.0.shutdown.notify_one();
        }
        Ok(Empty::default())
    }
}
