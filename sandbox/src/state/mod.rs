//! Containers on disk: one directory each below the state root, and in it state.json.
//!
//! Whoever reads or changes a container's state holds the lock on its directory. The state is
//! written to a file of its own and renamed into place, so a reader or a crash never meets half of
//! it.

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
use crate::dir::layout::Layout;
use crate::host::process::ProcessId;
use crate::host::users::UserNames;

/// What is remembered of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// How the file is laid out. It stays as it is when the state changes.
    #[serde(default, skip_serializing_if = "Layout::is_first")]
    pub version: Layout,
    /// The version of the runtime specification that config.json follows.
    pub oci_version: String,
    /// The container's id.
    pub id: ContainerId,
    /// Where its life stands, as far as was written down; see [`State::status`].
    pub status: Status,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The root file system's directory on the host.
    pub rootfs: PathBuf,
    /// When it was created, in RFC 3339.
    pub created: String,
    /// The user who created it.
    pub owner: u32,
    /// config.json's annotations.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// config.json's hooks: what it says later is not what the container was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// The limits that hold for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<LinuxResources>,
    /// The limit of memory, in bytes, that the host's groups were last made for, if the guest has not
    /// given back what it has beyond the one that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_memory: Option<u64>,
    /// The container has a terminal.
    pub terminal: bool,
    /// The process that holds the container's standard streams, or until there is one, the process
    /// that makes the container. Its pid is the container's to everyone on the host.
    pub monitor: Option<ProcessId>,
    /// A number of the host's that stands for the container, if it is not the monitor's pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<i32>,
    /// The container whose sandbox it has joined. None if the sandbox is its own.
    pub sandbox: Option<ContainerId>,
    /// Its first process, as the guest numbers it.
    pub guest_pid: Option<u32>,
    /// The paths of namespaces in its configuration.
    #[serde(default)]
    pub namespaces: Vec<(LinuxNamespaceType, PathBuf)>,
    /// Its control groups on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// How the container's first process ended.
    pub exit_status: Option<u8>,
}

impl State {
    /// Where the container's life stands. Without its monitor there is no container, whatever was
    /// written down last.
    pub fn status(&self) -> Status {
        match self.is_orphan() {
            true => Status::Stopped,
            false => self.status,
        }
    }

    /// Nobody answers for it any more, wherever its life stood.
    pub fn is_orphan(&self) -> bool {
        !self.monitor.is_some_and(ProcessId::is_alive)
    }

    /// The pid to show: 0 when there is none, as runc does.
    pub fn pid(&self) -> i32 {
        match (self.status(), self.monitor) {
            (Status::Stopped, _) | (_, None) => 0,
            (_, Some(monitor)) => self.stand_in.unwrap_or(monitor.pid),
        }
    }

    /// The pid that was shown while there was one.
    pub fn last_pid(&self) -> u32 {
        let pid = self.stand_in.or(self.monitor.map(|monitor| monitor.pid));
        pid.map_or(0, i32::unsigned_abs)
    }

    /// The state as the runtime specification defines it, and with what runc adds.
    pub fn report(&self) -> Report<'_> {
        Report {
            oci_version: &self.oci_version,
            id: self.id.as_str(),
            pid: self.pid(),
            status: self.status(),
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: UserNames::load().name(self.owner),
        }
    }
}

/// What `rvm state` and `rvm list` print.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// The monitor's pid, or 0.
    pub pid: i32,
    /// Where its life stands.
    pub status: Status,
    /// The bundle's directory.
    pub bundle: &'a PathBuf,
    rootfs: &'a PathBuf,
    /// When it was created.
    pub created: &'a str,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
    /// The name of the user who created it.
    pub owner: String,
}

/// Now, as state.json has it.
pub fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}
