//! Calls for whole containers and for the sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rvm_protocol::ContainerId;
use rvm_protocol::agent::event::Kind;
use rvm_protocol::agent::{
    AdoptContainerRequest, Event, EventsRequest, ListProcessesRequest, ListProcessesResponse,
    MountDisksRequest, Oom, PauseContainerRequest, RemoveContainerRequest, ResizeRequest,
    ResumeContainerRequest, ShutdownRequest, SignalProcessRequest, StatsRequest, StatsResponse,
    UpdateContainerRequest, UpdateVolumeRequest, WriteBackRequest,
};
use ttrpc::r#async::ClientStreamReceiver;

use super::{
    Agent, AgentError, Alias, CALL_TIMEOUT, SIGNAL_TIMEOUT, failed, limited, unlimited, within,
};
use crate::host::untrusted_text::clean;

/// How long OOM kills of a container are reported once. Each report is written to an engine, which
/// stores it: a guest that invents some could keep both busy.
const OOM_PERIOD: Duration = Duration::from_secs(1);

impl Agent {
    /// Lists the processes of a container. The texts have no control characters.
    pub async fn processes(&self, id: &ContainerId) -> Result<ListProcessesResponse, AgentError> {
        let request = ListProcessesRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let _long = self.long_answers.admit();
        let call = self.client.list_processes(limited(), &request);
        let mut answer = within(CALL_TIMEOUT, "list processes", call).await?;
        for process in &mut answer.processes {
            process.terminal = clean(&process.terminal);
            process.command = clean(&process.command);
            process.name = clean(&process.name);
            process.state = clean(&process.state);
        }
        Ok(answer)
    }

    /// Replaces the contents of the guest's copy of a volume.
    pub async fn update_volume(
        &self,
        id: &ContainerId,
        request: &UpdateVolumeRequest,
    ) -> Result<(), AgentError> {
        let request = &UpdateVolumeRequest {
            container_id: self.id(id),
            ..request.clone()
        };
        let call = self.client.update_volume(limited(), request);
        within(CALL_TIMEOUT, "update volume", call)
            .await
            .map(|_| ())
    }

    /// Attaches a container's disks and mounts the file systems on them.
    pub async fn mount_disks(
        &self,
        request: &MountDisksRequest,
        limit: Duration,
    ) -> Result<(), AgentError> {
        let call = self.client.mount_disks(unlimited(), request);
        within(limit, "mount disks", call).await.map(|_| ())
    }

    /// Signals every process of a container.
    pub async fn signal_all(&self, id: &ContainerId, signal: i32) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: self.id(id),
            signal: signal.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        let call = self.client.signal_process(limited(), &request);
        within(SIGNAL_TIMEOUT, "signal process", call)
            .await
            .map(|_| ())
    }

    /// Freezes the processes of a container, and returns when they are frozen.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = PauseContainerRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let call = self.client.pause_container(limited(), &request);
        within(CALL_TIMEOUT, "pause container", call)
            .await
            .map(|_| ())
    }

    /// Thaws the processes of a paused container.
    pub async fn resume(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = ResumeContainerRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let call = self.client.resume_container(limited(), &request);
        within(CALL_TIMEOUT, "resume container", call)
            .await
            .map(|_| ())
    }

    /// Changes a container's limits in the guest. The agent ignores device rules.
    pub async fn update(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: self.id(id),
            resources: serde_json::to_vec(resources)?,
            ..Default::default()
        };
        let call = self.client.update_container(limited(), &request);
        within(CALL_TIMEOUT, "update container", call)
            .await
            .map(|_| ())
    }

    /// A container's resource use in the guest. The texts have no control characters but the line
    /// breaks of `net_dev`.
    pub async fn stats(&self, id: &ContainerId) -> Result<StatsResponse, AgentError> {
        let request = StatsRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let _long = self.long_answers.admit();
        let call = self.client.stats(limited(), &request);
        let mut answer = within(CALL_TIMEOUT, "stats", call).await?;
        clean_stats(&mut answer);
        Ok(answer)
    }

    /// Adapts the guest to its machine's new size: brings vCPUs online or offline, and binds the
    /// virtio-mem device.
    pub async fn resize_guest(&self, cpus: u8, has_memory_device: bool) -> Result<(), AgentError> {
        let request = ResizeRequest {
            cpus: cpus.into(),
            has_memory_device,
            ..Default::default()
        };
        let call = self.client.resize(limited(), &request);
        within(CALL_TIMEOUT, "resize", call).await.map(|_| ())
    }

    /// Has a container's init process outlive the connection of the process that stood for it: this
    /// one does from now on. The container gets a host name, if it is to have one.
    pub async fn adopt(&self, id: &ContainerId, hostname: Option<&str>) -> Result<(), AgentError> {
        let request = AdoptContainerRequest {
            container_id: self.id(id),
            hostname: hostname.unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let call = self.client.adopt_container(limited(), &request);
        within(CALL_TIMEOUT, "adopt container", call)
            .await
            .map(|_| ())
    }

    /// Kills the remaining processes of a container and removes it from the guest.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = RemoveContainerRequest {
            container_id: self.id(id),
            ..Default::default()
        };
        let call = self.client.remove_container(limited(), &request);
        within(CALL_TIMEOUT, "remove container", call)
            .await
            .map(|_| ())
    }

    /// Waits until the host has what ended processes wrote to shared files, for at most `limit`. An
    /// agent of an older rvm refuses: it has done so before it reported the end of a container.
    pub async fn write_back(&self, limit: Duration) -> Result<(), AgentError> {
        let request = WriteBackRequest::new();
        let call = self.client.write_back(unlimited(), &request);
        within(limit, "write back", call).await.map(|_| ())
    }

    /// Ends every container and writes their files back; the machine then powers off.
    pub async fn shut_down(&self) -> Result<(), AgentError> {
        let request = ShutdownRequest::new();
        let call = self.client.shutdown(limited(), &request);
        within(CALL_TIMEOUT, "shutdown", call).await.map(|_| ())
    }

    /// Subscribes to the events of the sandbox.
    pub async fn events(&self) -> Result<Events, AgentError> {
        let stream = self.client.events(unlimited(), &EventsRequest::new()).await;
        let events = stream.map(|stream| Events::new(stream, self.alias.clone()));
        events.map_err(failed("events"))
    }
}

/// Makes the texts of statistics safe to show.
fn clean_stats(stats: &mut StatsResponse) {
    for pages in &mut stats.hugetlb {
        pages.page_size = clean(&pages.page_size);
    }
    if let Some(memory) = stats.memory.as_mut() {
        memory.stat.retain(|name, _| is_counter_name(name));
    }
    let lines: Vec<String> = stats.net_dev.lines().map(clean).collect();
    stats.net_dev = lines.join("\n");
}

/// Whether the kernel could have a counter of this name: memory.stat has letters, digits and
/// underscores in names of some twenty bytes.
fn is_counter_name(name: &str) -> bool {
    name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Exits and OOM kills of all containers of a sandbox, in order.
///
/// OOM kills of a container that follow one another within [`OOM_PERIOD`] are one event.
pub struct Events {
    stream: ClientStreamReceiver<Event>,
    /// When OOM kills of each container were last reported, for [`OOM_PERIOD`].
    reported: BTreeMap<String, Instant>,
    alias: Option<Arc<Alias>>,
}

impl Events {
    /// The next event; None at the end of the stream. An error ends the stream too: the machine has
    /// ended, most likely.
    pub async fn next(&mut self) -> Result<Option<Event>, AgentError> {
        loop {
            let event = self.stream.recv().await.map_err(failed("events"))?;
            match &event {
                Some(event) if event.has_oom() && self.is_repeated(event.oom()) => {}
                _ => return Ok(event.map(|event| self.by_hosts_id(event))),
            }
        }
    }

    fn new(stream: ClientStreamReceiver<Event>, alias: Option<Arc<Alias>>) -> Self {
        Self {
            stream,
            alias,
            reported: BTreeMap::new(),
        }
    }

    /// The event with the id that the host knows the container by.
    fn by_hosts_id(&self, mut event: Event) -> Event {
        let Some(alias) = &self.alias else {
            return event;
        };
        let named = match &mut event.kind {
            Some(Kind::Exit(exit)) => &mut exit.container_id,
            Some(Kind::Oom(oom)) => &mut oom.container_id,
            _ => return event,
        };
        if *named == alias.guest.as_str() {
            *named = alias.host.to_string();
        }
        event
    }

    fn is_repeated(&mut self, oom: &Oom) -> bool {
        let now = Instant::now();
        self.reported
            .retain(|_, at| now.duration_since(*at) < OOM_PERIOD);
        if self.reported.contains_key(&oom.container_id) {
            return true;
        }
        self.reported.insert(oom.container_id.clone(), now);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_statistics_cannot_move_the_cursor() {
        let mut stats = StatsResponse::new();
        stats.hugetlb.push(Default::default());
        stats.hugetlb[0].page_size = "2MB\u{1b}[2J".to_owned();
        let names = ["anon", "workingset_refault_file", "\u{1b}[2J"];
        let counters = &mut stats.memory.mut_or_insert_default().stat;
        counters.extend(names.map(|name| (name.to_owned(), 1)));
        stats.net_dev = "Inter-|\n face |\n eth0\u{1b}[2J: 1 2\n".to_owned();
        clean_stats(&mut stats);
        assert_eq!(stats.hugetlb[0].page_size, "2MB [2J");
        assert_eq!(stats.memory.stat.len(), 2);
        assert_eq!(stats.net_dev, "Inter-|\n face |\n eth0 [2J: 1 2");
    }
}
