//! containerd's Sandbox service, with which containerd 2 makes a pod's machine before the pod has
//! any container. The shim then puts a pause container into the machine; see [`sandbox_bundle`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox as Service;
use containerd_shim_protos::types::platform::Platform;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use rvm_protocol::ContainerId;
use rvm_sys::error_chain::chain;
use ttrpc::r#async::TtrpcContext;

use super::error::ServiceError;
use super::metrics;
use crate::pod::Pod;
use crate::pod::container::{Container, Kind};
use crate::pod::error::{PodError, Refusal};
use crate::rootfs;
use crate::sandbox_bundle::{self, files};

/// CRI's names of a sandbox's states.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// How long a sandbox may take to stop if the request names no time.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may take to answer a ping, on a busy host with a software CPU too.
const PING_TIMEOUT: Duration = Duration::from_secs(30);

pub struct SandboxService {
    pod: Arc<Pod>,
    created: Mutex<Option<CreatedSandbox>>,
}

/// A sandbox that was created, and perhaps started.
#[derive(Clone, Debug)]
struct CreatedSandbox {
    id: ContainerId,
    bundle: PathBuf,
    /// Mounted when the sandbox starts.
    rootfs: Vec<Mount>,
    created_at: SystemTime,
}

impl SandboxService {
    pub fn new(pod: Arc<Pod>) -> Self {
        Self {
            pod,
            created: Mutex::new(None),
        }
    }

    fn created(&self) -> MutexGuard<'_, Option<CreatedSandbox>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<CreatedSandbox, ServiceError> {
        let created = self.created();
        let found = created.as_ref().filter(|sandbox| sandbox.id.as_str() == id);
        let found = found.cloned();
        found.ok_or_else(|| ServiceError::NoSandbox(id.to_owned()))
    }

    /// The sandbox's pause container, which exists once the sandbox was started.
    fn container(&self, id: &str) -> Result<Arc<Container>, ServiceError> {
        Ok(self.pod.container(&self.find(id)?.id)?)
    }

    async fn stop(&self, container: &Container, timeout: Duration) -> Result<(), PodError> {
        const KILL: u32 = libc::SIGKILL.unsigned_abs();
        match container.kill(&container.init, KILL, true).await {
            // It may have ended before.
            Err(PodError::Refused(Refusal::Finished)) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let exit = container.init.wait();
        if tokio::time::timeout(timeout, exit).await.is_err() {
            tracing::warn!("sandbox {} does not stop and is killed", container.id());
        }
        self.pod.end_machine().await;
        Ok(())
    }
}

fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    Some(Timestamp::from(at)).into()
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        let id = ContainerId::new(request.sandbox_id.as_str()).map_err(ServiceError::from)?;
        let bundle = PathBuf::from(&request.bundle_path);
        let shared = sandbox_bundle::write(&bundle, &request).map_err(ServiceError::from)?;
        self.pod.share_files(shared);
        *self.created() = Some(CreatedSandbox {
            id,
            bundle,
            rootfs: request.rootfs,
            created_at: SystemTime::now(),
        });
        Ok(api::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let task = CreateTaskRequest {
            id: request.sandbox_id,
            bundle: sandbox.bundle.to_string_lossy().into_owned(),
            rootfs: sandbox.rootfs,
            ..Default::default()
        };
        let container = self.pod.create(sandbox.id, &task, Kind::Pause).await?;
        self.pod.start(&container).await?;
        Ok(api::StartSandboxResponse {
            pid: container.init.pid(),
            created_at: timestamp(sandbox.created_at),
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
        // A sandbox that was never started has nothing to stop.
        if let Ok(container) = self.container(&request.sandbox_id) {
            let timeout = match request.timeout_secs {
                0 => STOP_TIMEOUT,
                seconds => Duration::from_secs(seconds.into()),
            };
            self.stop(&container, timeout).await?;
        }
        Ok(api::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let container = self.container(&request.sandbox_id)?;
        let exit = container.init.wait().await;
        Ok(api::WaitSandboxResponse {
            exit_status: exit.status.into(),
            exited_at: Some(exit.timestamp()).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        let container = self.pod.container(&sandbox.id).ok();
        let exit = container.as_ref().and_then(|pause| pause.init.exit());
        let is_ready = container.is_some() && exit.is_none();
        let mut status = api::SandboxStatusResponse {
            sandbox_id: sandbox.id.into(),
            pid: container.map_or(0, |container| container.init.pid()),
            state: if is_ready { READY } else { NOT_READY }.to_owned(),
            created_at: timestamp(sandbox.created_at),
            exited_at: exit.map(|exit| exit.timestamp()).into(),
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
        let checked = container.guest.agent().check(PING_TIMEOUT).await;
        checked.map_err(PodError::from)?;
        Ok(api::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        if let Ok(container) = self.container(&request.sandbox_id) {
            self.stop(&container, STOP_TIMEOUT).await?;
            self.pod.delete(&container).await?;
        }
        if let Ok(sandbox) = self.find(&request.sandbox_id)
            && let Err(error) =
                rootfs::unmount_all(&sandbox.bundle).and_then(|()| files::unmount(&sandbox.bundle))
        {
            tracing::warn!("{}", chain(&error));
        }
        self.pod.shutdown.notify_one();
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
        metric.data = Some(metrics::encode(&container.host_stats()?)).into();
        Ok(response)
    }
}
