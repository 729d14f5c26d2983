//! containerd's Task service: each method finds its object and says what it said.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;

use crate::container::Container;
use crate::error::ShimError;
use crate::metrics;
use crate::pod::{Announce, Pod};
use crate::process::Process;
use crate::stdio::Uris;

/// The type of [`ProcessDetails`], by the name that containerd looks for.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The service.
pub struct TaskApi(pub Arc<Pod>);

impl TaskApi {
    fn container(&self, id: &str) -> Result<Arc<Container>, ShimError> {
        self.0.container(id)
    }

    fn process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(Arc<Container>, Arc<Process>), ShimError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    async fn start_exec(
        &self,
        container: &Arc<Container>,
        process: Arc<Process>,
    ) -> Result<(), ShimError> {
        let _telling = process.telling.lock().await;
        let output = container.start_exec(&process, self.0.namespace()).await?;
        let event = TaskExecStarted {
            container_id: container.id().to_owned(),
            exec_id: process.id.clone(),
            pid: process.pid(),
            ..Default::default()
        };
        self.0.tell(container, &event);
        self.0.follow(container, Arc::clone(&process), output);
        Ok(())
    }
}

/// What comes as JSON in a message, such as the OCI types.
fn from_json<T: DeserializeOwned>(what: &str, any: &Any) -> Result<T, ShimError> {
    serde_json::from_slice(&any.value)
        .map_err(|error| ShimError::Invalid(format!("{what} of type {}: {error}", any.type_url)))
}

#[async_trait]
impl Task for TaskApi {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let ended = process.ended();
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
            exit_status: ended.map_or(0, |ended| ended.status),
            exited_at: ended.map(|ended| ended.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let container = self.0.create(&request, Announce::All).await?;
        Ok(CreateTaskResponse {
            pid: container.init.pid(),
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        match request.exec_id.as_str() {
            "" => self.0.start(&container).await?,
            _ => self.start_exec(&container, Arc::clone(&process)).await?,
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
        let ended = match request.exec_id.as_str() {
            "" => Some(self.0.delete(&container).await?),
            _ => {
                container.remove_exec(&process).await?;
                process.ended()
            }
        };
        Ok(DeleteResponse {
            pid: process.pid(),
            exit_status: ended.map_or(0, |ended| ended.status),
            exited_at: ended.map(|ended| ended.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let execs = container.execs.all();
        let details = |pid| {
            let exec = execs.iter().find(|exec| exec.pid() == pid)?;
            let details = ProcessDetails {
                exec_id: exec.id.clone(),
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
        self.0.tell(&container, &event);
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        container.resume().await?;
        let event = TaskResumed {
            container_id: request.id,
            ..Default::default()
        };
        self.0.tell(&container, &event);
        Ok(Empty::default())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        self.container(&request.id)?;
        Err(ShimError::Unimplemented("checkpoint").into())
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
        let program = from_json("the process", request.spec.get_or_default())?;
        let uris = Uris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        container.add_exec(&request.exec_id, uris, program)?;
        let event = TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        self.0.tell(&container, &event);
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
            process.end_stdin();
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
        let ended = process.wait().await;
        Ok(WaitResponse {
            exit_status: ended.status,
            exited_at: Some(ended.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.container(&request.id)?;
        let stats = metrics::encode(&container.stats().await?);
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
        // containerd also asks before there is a container.
        let container = self.container(&request.id).ok();
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // It is asked for after every container of a pod.
        if self.0.is_empty() {
            self.0.done.notify_one();
        }
        Ok(Empty::default())
    }
}
