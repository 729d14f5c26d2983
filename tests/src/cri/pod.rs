//! Pods and their containers.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cri, Status, Stream, api};
use crate::command::eventually;
use crate::image;

/// A pod, stopped and removed when dropped.
pub struct Pod<'a> {
    cri: &'a Cri,
    pub id: String,
    /// The configuration that it was made with.
    pub config: api::PodSandboxConfig,
}

/// A container of a pod.
pub struct Container<'a> {
    cri: &'a Cri,
    pub id: String,
    pub log: PathBuf,
}

/// The exit code and the output of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cri {
    /// The configuration of a pod, with a directory for its logs.
    pub fn pod_config(&self, name: &str) -> api::PodSandboxConfig {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let logs = self.world().path(&format!("logs-{name}-{count}"));
        fs::create_dir(&logs).unwrap();
        let mut config = api::PodSandboxConfig::new();
        let metadata = config.metadata.mut_or_insert_default();
        metadata.name = name.to_owned();
        metadata.namespace = "default".to_owned();
        metadata.uid = format!("uid-{count}");
        config.hostname = name.to_owned();
        config.log_directory = logs.display().to_string();
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = crate::command::world().unwrap();
        config
    }

    pub fn pod(&self, name: &str, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Pod<'_> {
        let mut config = self.pod_config(name);
        change(&mut config);
        self.run_pod(config)
            .unwrap_or_else(|status| panic!("{name}: {status:?}\n{}", self.containerd.log()))
    }

    pub fn run_pod(&self, config: api::PodSandboxConfig) -> Result<Pod<'_>, Status> {
        self.run_pod_by("", config)
    }

    /// Runs a pod with runtime `rvm` or `runc`.
    pub fn run_pod_by(
        &self,
        runtime: &str,
        config: api::PodSandboxConfig,
    ) -> Result<Pod<'_>, Status> {
        let mut request = api::RunPodSandboxRequest::new();
        request.config = Some(config.clone()).into();
        runtime.clone_into(&mut request.runtime_handler);
        let answer: api::RunPodSandboxResponse = self.call("RunPodSandbox", &request)?;
        self.remember(&answer.pod_sandbox_id);
        Ok(Pod {
            cri: self,
            id: answer.pod_sandbox_id,
            config,
        })
    }
}

impl<'a> Pod<'a> {
    /// The configuration of a container that runs a shell command.
    pub fn container_config(&self, name: &str, script: &str) -> api::ContainerConfig {
        let mut config = api::ContainerConfig::new();
        config.metadata.mut_or_insert_default().name = name.to_owned();
        config.image.mut_or_insert_default().image = image::NAME.to_owned();
        config.command = ["sh", "-c", script].map(str::to_owned).to_vec();
        config.log_path = format!("{name}.log");
        let namespaces = config
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options
            .mut_or_insert_default();
        namespaces.pid = api::NamespaceMode::CONTAINER.into();
        config
    }

    pub fn start(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut api::ContainerConfig),
    ) -> Container<'a> {
        let mut config = self.container_config(name, script);
        change(&mut config);
        let started = self.start_config(config);
        started.unwrap_or_else(|status| panic!("{name}: {status:?}"))
    }

    /// The same with a configuration.
    pub fn start_config(&self, config: api::ContainerConfig) -> Result<Container<'a>, Status> {
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        let mut request = api::CreateContainerRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        request.config = Some(config).into();
        request.sandbox_config = Some(self.config.clone()).into();
        let answer: api::CreateContainerResponse = self.cri.call("CreateContainer", &request)?;
        self.cri.remember(&answer.container_id);
        let container = Container {
            cri: self.cri,
            id: answer.container_id,
            log,
        };
        let mut request = api::StartContainerRequest::new();
        request.container_id.clone_from(&container.id);
        let _: api::StartContainerResponse = self.cri.call("StartContainer", &request)?;
        Ok(container)
    }

    /// Its status.
    pub fn status(&self) -> api::PodSandboxStatus {
        let mut request = api::PodSandboxStatusRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        let answer: api::PodSandboxStatusResponse = self.cri.ok("PodSandboxStatus", &request);
        answer.status.unwrap()
    }

    pub fn stats(&self) -> api::PodSandboxStats {
        let mut request = api::PodSandboxStatsRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        let answer: api::PodSandboxStatsResponse = self.cri.ok("PodSandboxStats", &request);
        answer.stats.unwrap()
    }

    pub fn forward(&self, port: u16) -> Stream {
        let mut request = api::PortForwardRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        request.port.push(port.into());
        let answer: api::PortForwardResponse = self.cri.ok("PortForward", &request);
        let url = format!("{}?port={port}", answer.url);
        Stream::connect(self.cri.world().network(), &url)
    }

    /// Stops it. Stopping a stopped pod succeeds.
    pub fn stop(&self) {
        let mut request = api::StopPodSandboxRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        let _: api::StopPodSandboxResponse = self.cri.ok("StopPodSandbox", &request);
    }

    pub fn remove(self) {
        self.stop();
        let mut request = api::RemovePodSandboxRequest::new();
        request.pod_sandbox_id.clone_from(&self.id);
        let _: api::RemovePodSandboxResponse = self.cri.ok("RemovePodSandbox", &request);
    }
}

impl Container<'_> {
    pub fn exec(&self, script: &str) -> Output {
        let mut request = api::ExecSyncRequest::new();
        request.container_id.clone_from(&self.id);
        request.cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        request.timeout = 60;
        let answer: api::ExecSyncResponse = self.cri.ok("ExecSync", &request);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Output {
            code: answer.exit_code,
            stdout: text(&answer.stdout),
            stderr: text(&answer.stderr),
        }
    }

    /// The output of a shell command that must succeed.
    pub fn shell(&self, script: &str) -> String {
        let output = self.exec(script);
        assert_eq!(output.code, 0, "{script}: {output:?}");
        output.stdout
    }

    /// Starts a shell command and connects to its streams.
    pub fn stream(&self, script: &str, tty: bool) -> Stream {
        let mut request = api::ExecRequest::new();
        request.container_id.clone_from(&self.id);
        request.cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        request.tty = tty;
        request.stdin = true;
        request.stdout = true;
        request.stderr = !tty;
        let answer: api::ExecResponse = self.cri.ok("Exec", &request);
        Stream::connect(self.cri.world().network(), &answer.url)
    }

    /// Connects to the streams of the container's init process.
    pub fn attach(&self, stdin: bool) -> Stream {
        let mut request = api::AttachRequest::new();
        request.container_id.clone_from(&self.id);
        request.stdin = stdin;
        request.stdout = true;
        request.stderr = true;
        let answer: api::AttachResponse = self.cri.ok("Attach", &request);
        Stream::connect(self.cri.world().network(), &answer.url)
    }

    /// Its status.
    pub fn status(&self) -> api::ContainerStatus {
        let mut request = api::ContainerStatusRequest::new();
        request.container_id.clone_from(&self.id);
        let answer: api::ContainerStatusResponse = self.cri.ok("ContainerStatus", &request);
        answer.status.unwrap()
    }

    /// Waits until it has ended; returns its status.
    pub fn ended(&self) -> api::ContainerStatus {
        let is_exited = |status: &api::ContainerStatus| {
            status.state == api::ContainerState::CONTAINER_EXITED.into()
        };
        eventually("the container ends", || is_exited(&self.status()));
        self.status()
    }

    pub fn stats(&self) -> api::ContainerStats {
        let mut request = api::ContainerStatsRequest::new();
        request.container_id.clone_from(&self.id);
        let answer: api::ContainerStatsResponse = self.cri.ok("ContainerStats", &request);
        answer.stats.unwrap()
    }

    pub fn update(&self, change: impl FnOnce(&mut api::LinuxContainerResources)) {
        let updated = self.try_update(change);
        updated.unwrap_or_else(|status| panic!("UpdateContainerResources: {status:?}"));
    }

    /// Changes its limits; returns the error if that is refused.
    pub fn try_update(
        &self,
        change: impl FnOnce(&mut api::LinuxContainerResources),
    ) -> Result<(), Status> {
        let mut request = api::UpdateContainerResourcesRequest::new();
        request.container_id.clone_from(&self.id);
        change(request.linux.mut_or_insert_default());
        let updated: Result<api::UpdateContainerResourcesResponse, Status> =
            self.cri.call("UpdateContainerResources", &request);
        updated.map(|_| ())
    }

    /// Stops it: SIGTERM, and SIGKILL after these seconds.
    pub fn stop(&self, seconds: i64) {
        let mut request = api::StopContainerRequest::new();
        request.container_id.clone_from(&self.id);
        request.timeout = seconds;
        let _: api::StopContainerResponse = self.cri.ok("StopContainer", &request);
    }

    pub fn remove(self) {
        let mut request = api::RemoveContainerRequest::new();
        request.container_id.clone_from(&self.id);
        let _: api::RemoveContainerResponse = self.cri.ok("RemoveContainer", &request);
    }

    /// The lines of its log: stream, `F` (full) or `P` (partial), text.
    pub fn log_lines(&self) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let parse = |line: &str| {
            let mut fields = line.splitn(4, ' ').skip(1).map(str::to_owned);
            let mut next = || fields.next().unwrap_or_default();
            (next(), next(), next())
        };
        text.lines().map(parse).collect()
    }
}
