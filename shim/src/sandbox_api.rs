//! containerd's Sandbox service, with which containerd 2 makes a pod's machine before there is any
//! container in it. The machine then has a first container of our own making; see [`crate::pause`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox as Service;
use containerd_shim_protos::types::platform::Platform;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::r#async::TtrpcContext;

use crate::container::Container;
use crate::error::{ShimError, chain};
use crate::metrics;
use crate::pod::{Announce, Pod};
use crate::rootfs;
use crate::sandbox_files;
use crate::sandbox_spec;

/// What CRI calls the states of a sandbox.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// How long a machine may take to end that is not asked to hurry.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The service.
pub struct SandboxApi {
    pod: Arc<Pod>,
    sandbox: Mutex<Option<Made>>,
}

/// A sandbox that was made, and perhaps started.
#[derive(Clone, Debug)]
struct Made {
    id: String,
    bundle: PathBuf,
    created_at: SystemTime,
}

impl SandboxApi {
    /// Serves the sandbox of this shim.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self {
            pod,
            sandbox: Mutex::new(None),
        }
    }

    fn made(&self, id: &str) -> Result<Made, ShimError> {
        let made = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.as_ref().filter(|made| made.id == id).cloned();
        made.ok_or_else(|| ShimError::NotFound(format!("sandbox {id} not created")))
    }

    /// Its first container, which is there once it was started.
    fn container(&self, id: &str) -> Result<Arc<Container>, ShimError> {
        self.made(id)?;
        self.pod.container(id)
    }

    async fn stop(&self, container: &Container, limit: Duration) -> Result<(), ShimError> {
        const KILL: u32 = libc::SIGKILL.unsigned_abs();
        match container.kill(&container.init, KILL, true).await {
            // It has ended already.
            Err(ShimError::NotFound(_)) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        if tokio::time::timeout(limit, container.init.wait())
            .await
            .is_err()
        {
            tracing::warn!("sandbox {} does not stop and is ended", container.id());
        }
        self.pod.end_sandbox().await;
        Ok(())
    }
}

fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    Some(Timestamp::from(at)).into()
}

#[async_trait]
impl Service for SandboxApi {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        let bundle = PathBuf::from(&request.bundle_path);
        rootfs::mount_all(&bundle, &request.rootfs).map_err(ShimError::from)?;
        self.pod.give_files(sandbox_spec::write(&bundle, &request)?);
        let made = Made {
            id: request.sandbox_id,
            bundle,
            created_at: SystemTime::now(),
        };
        *self.sandbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Ok(api::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let made = self.made(&request.sandbox_id)?;
        let task = CreateTaskRequest {
            id: made.id.clone(),
            bundle: made.bundle.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let container = self.pod.create(&task, Announce::Nothing).await?;
        self.pod.start(&container).await?;
        Ok(api::StartSandboxResponse {
            pid: container.init.pid(),
            created_at: timestamp(made.created_at),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            ..Default::default()
        };
        Ok(api::PlatformResponse {
            platform: Some(platform).into(),
            ..Default::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        // One that never started has nothing to stop.
        if let Ok(container) = self.container(&request.sandbox_id) {
            let limit = match request.timeout_secs {
                0 => STOP_LIMIT,
                seconds => Duration::from_secs(seconds.into()),
            };
            self.stop(&container, limit).await?;
        }
        Ok(api::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let container = self.container(&request.sandbox_id)?;
        let ended = container.init.wait().await;
        Ok(api::WaitSandboxResponse {
            exit_status: ended.status,
            exited_at: Some(ended.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let made = self.made(&request.sandbox_id)?;
        let container = self.pod.container(&made.id).ok();
        let ended = container
            .as_ref()
            .and_then(|container| container.init.ended());
        let is_ready = container.is_some() && ended.is_none();
        let mut status = api::SandboxStatusResponse {
            sandbox_id: made.id,
            pid: container.map_or(0, |container| container.init.pid()),
            state: if is_ready { READY } else { NOT_READY }.to_owned(),
            created_at: timestamp(made.created_at),
            exited_at: ended.map(|ended| ended.timestamp()).into(),
            ..Default::default()
        };
        if request.verbose {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            status.info.insert("rvmVersion".to_owned(), version);
        }
        Ok(status)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        let container = self.container(&request.sandbox_id)?;
        let checked = container.guest.agent().check().await;
        checked.map_err(ShimError::from)?;
        Ok(api::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        if let Ok(container) = self.container(&request.sandbox_id) {
            self.stop(&container, STOP_LIMIT).await?;
            self.pod.delete(&container).await?;
        }
        if let Ok(made) = self.made(&request.sandbox_id)
            && let Err(error) = rootfs::unmount_all(&made.bundle)
                .and_then(|()| sandbox_files::unmount(&made.bundle))
        {
            tracing::warn!("{}", chain(&error));
        }
        self.pod.done.notify_one();
        Ok(api::ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let container = self.container(&request.sandbox_id)?;
        let mut response = api::SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = timestamp(SystemTime::now());
        metric.id = request.sandbox_id;
        metric.data = Some(metrics::encode(&container.cost()?)).into();
        Ok(response)
    }
}
