//! Containers on disk: one directory each below the state root, and in it state.json.
//!
//! A process holds the lock on a container's directory while it reads or changes the state. The
//! state is written to a new file that is renamed into place, so neither a reader nor a crash meets
//! half of it.

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
mod pods;
pub mod status;
pub mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::runtime::{Hooks, LinuxNamespaceType, LinuxResources};
use rvm_protocol::ContainerId;
use serde::{Deserialize, Serialize};

pub use status::Status;
pub use store::{Container, Locked, StateError, Store};

use crate::cgroup::Cgroup;
use crate::checkpoint::{SavedContainer, Streams, UpdatedLimits};
use crate::dir::layout::Layout;
use crate::host::process::ProcessId;
use crate::host::users::UserNames;
use crate::sizing::pod_limits::Limits;

/// The annotation in the reported state of a container whose guest does not answer. It says since
/// when.
pub const SILENT_SINCE: &str = "org.rvm.guest.silent-since";

/// What state.json says of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The layout of the file, which a change of the state keeps.
    #[serde(default, skip_serializing_if = "Layout::is_first")]
    pub version: Layout,
    /// The version of the runtime specification that config.json follows.
    pub oci_version: String,
    /// The container's id.
    pub id: ContainerId,
    /// The status that was last written down; see [`State::status`].
    pub status: Status,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system's directory on the host, absolute.
    pub rootfs: PathBuf,
    /// When the container was created, in RFC 3339.
    pub created: String,
    /// The uid of the user who created it.
    pub owner: u32,
    /// config.json's annotations.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// config.json's hooks. The file itself may have changed since the container was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// The limits that hold now: config.json's, as updates have changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<LinuxResources>,
    /// config.json's limits, where updates have changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_resources: Option<LinuxResources>,
    /// The memory limit of the host's cgroups, in bytes, where it is above the container's own
    /// because the guest has not given the memory back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_memory: Option<u64>,
    /// Whether the init process has a terminal.
    pub terminal: bool,
    /// The process that stands for the container on the host: its monitor or its shim, and before
    /// there is one, the process that creates the container.
    pub monitor: Option<ProcessId>,
    /// The thread id that is the container's pid, where that is not the monitor's pid: a shim has
    /// several containers.
    #[serde(default, rename = "standIn", skip_serializing_if = "Option::is_none")]
    pub anchor_pid: Option<i32>,
    /// The container whose sandbox this one is in. `None` if the sandbox is its own.
    pub sandbox: Option<ContainerId>,
    /// The init process's pid in the guest.
    pub guest_pid: Option<u32>,
    /// Its standard streams in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    /// The namespaces of config.json that have a path.
    #[serde(default)]
    pub namespaces: Vec<(LinuxNamespaceType, PathBuf)>,
    /// The container's cgroups on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// The init process's exit code, 128 and the signal's number if a signal ended it. `None` while
    /// it runs, and if the machine or the monitor ended first.
    pub exit_status: Option<u8>,
}

impl State {
    /// The limits that it was created with and that hold now.
    pub(crate) fn limits(&self) -> Limits {
        let now = self.resources.clone().unwrap_or_default();
        Limits {
            first: self.first_resources.clone().unwrap_or_else(|| now.clone()),
            now,
        }
    }

    /// The limits that hold now, if they are others than config.json's.
    pub(crate) fn updated_limits(&self) -> Option<UpdatedLimits> {
        self.first_resources.as_ref()?;
        Some(UpdatedLimits {
            resources: self.resources.clone().unwrap_or_default(),
            kept_memory: self.kept_memory,
        })
    }

    /// Takes over what a checkpoint has of a container that goes on from it.
    pub(crate) fn go_on_from(&mut self, saved: &SavedContainer) {
        self.guest_pid = Some(saved.guest_pid);
        self.streams = Some(saved.streams);
        if let Some(updated) = &saved.updated {
            let first = self.resources.replace(updated.resources.clone());
            self.first_resources = Some(first.unwrap_or_default());
            self.kept_memory = updated.kept_memory;
        }
    }

    /// The container's status now: without its monitor it has stopped, whatever was written down
    /// last.
    pub fn status(&self) -> Status {
        match self.is_orphan() {
            true => Status::Stopped,
            false => self.status,
        }
    }

    /// Whether the process that stands for the container has ended.
    pub fn is_orphan(&self) -> bool {
        !self.monitor.is_some_and(ProcessId::is_alive)
    }

    /// The container's pid, or 0 if it has stopped, as with runc.
    pub fn pid(&self) -> i32 {
        match (self.status(), self.monitor) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(monitor)) => self.anchor_pid.unwrap_or(monitor.pid),
        }
    }

    /// The pid that the container has, or had before it stopped.
    pub fn last_pid(&self) -> u32 {
        let pid = self.anchor_pid.or(self.monitor.map(|monitor| monitor.pid));
        pid.map_or(0, i32::unsigned_abs)
    }

    /// The state as the runtime specification defines it, with the fields that runc adds. An
    /// annotation of rvm's says since when the guest has not answered, if it does not.
    pub fn report(&self, silent_since: Option<String>) -> Report<'_> {
        let mut annotations = self.annotations.clone();
        annotations.extend(silent_since.map(|since| (SILENT_SINCE.to_owned(), since)));
        Report {
            oci_version: &self.oci_version,
            id: self.id.as_str(),
            pid: self.pid(),
            status: self.status(),
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations,
            owner: UserNames::load().name(self.owner),
        }
    }
}

impl Container {
    /// Since when the guest of a container that runs has not answered, if it does not.
    pub fn silent_since(&self, state: &State) -> Option<String> {
        if state.status() == Status::Stopped {
            return None;
        }
        let record = self.sandbox(state).ok()?.record().ok()??;
        record.silent_since
    }
}

/// What `rvm state` and `rvm list` print.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// See [`State::pid`].
    pub pid: i32,
    /// See [`State::status`].
    pub status: Status,
    /// The bundle's directory, absolute.
    pub bundle: &'a PathBuf,
    rootfs: &'a PathBuf,
    /// When the container was created, in RFC 3339.
    pub created: &'a str,
    /// config.json's, and rvm's own.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// The name of the user who created it.
    pub owner: String,
}

/// The time now, as state.json has it.
pub fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}
