//! The plan: what a container's init process, or a process that joins, does before it executes its
//! program.
//!
//! The agent derives it from config.json (see `container::spec`), validates it, and passes it as
//! JSON in a memory file. It is plain values: the process that carries it out decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sys::sched::SchedAttr;
use rvm_sys::mount::AttrChange;

/// The numbers of the descriptors that the process starts with, besides its standard streams.
pub mod fd {
    /// The first extra descriptor of the program, up to [`CONTROL`].
    pub const EXTRA: i32 = 3;
    /// The socket to the agent.
    pub const CONTROL: i32 = 64;
    pub const PLAN: i32 = 65;
    /// The compiled seccomp filter, if there is one.
    pub const SECCOMP: i32 = 66;
    /// The pidfd of the process whose namespaces to join.
    pub const JOIN: i32 = 67;
    /// The first of the mounts that the agent has prepared.
    pub const MOUNTS: i32 = 68;
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub role: Role,
    pub process: ProcessPlan,
    /// The number of descriptors from [`fd::EXTRA`] on that the program gets.
    pub extra: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Role {
    /// The init process: makes the container's file system and waits before it executes.
    Create(Box<ContainerPlan>),
    /// Joins the namespaces of the init process.
    Join {
        /// `CLONE_NEW*`
        namespaces: u64,
        /// Whether there is a user namespace, whose root the process then becomes.
        user_namespace: bool,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerPlan {
    pub id: String,
    /// The root file system's directory in the guest.
    pub rootfs: String,
    pub readonly_rootfs: bool,
    /// Propagation of the root, as `MS_*` flags; 0 where config.json has none.
    pub rootfs_propagation: u64,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Nodes to make below /dev; empty if the container's /dev is a bind mount.
    pub devices: Vec<DevicePlan>,
    /// Whether /dev is the container's own, so that its links are made too.
    pub populate_dev: bool,
    /// Whether devices are bind-mounted from the guest, as in a user namespace.
    pub bind_devices: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// By their paths below /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// Offsets of the time namespace to make.
    pub time_offsets: Option<Vec<TimeOffset>>,
    /// Whether the process makes a cgroup namespace.
    pub cgroup_namespace: bool,
    /// Whether the network namespace is new.
    pub network_namespace: bool,
    pub create_hooks: Vec<HookPlan>,
    pub start_hooks: Vec<HookPlan>,
    pub hook_state: HookState,
}

/// Clock id, seconds and nanoseconds.
pub type TimeOffset = (i32, i64, u32);

/// CPU numbers: to start on, and from execve(2) on. An empty list changes nothing.
pub type CpuAffinity = (Vec<u32>, Vec<u32>);

/// The part of the hooks' state that is in config.json.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HookState {
    /// `ociVersion`
    pub version: String,
    /// The bundle's directory in the guest.
    pub bundle: String,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute.
    pub path: String,
    /// With the program's own name first.
    pub args: Vec<String>,
    /// The whole environment; without one, that of the container's process.
    pub env: Option<Vec<String>>,
    /// Seconds, after which the hook is killed and has failed.
    pub timeout: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// In the container's root.
    pub destination: String,
    pub source: MountSource,
    /// For the mount itself.
    pub attributes: AttrChange,
    /// For the mount and all below it.
    pub recursive: AttrChange,
    /// Propagation to set in order: an `MS_*` flag, perhaps with `MS_REC`.
    pub propagation: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// Changes the attributes of an existing mount.
    #[default]
    Existing,
    Bind {
        /// In the guest.
        path: String,
        recursive: bool,
        /// The index, from [`fd::MOUNTS`] on, of the mount that the agent has prepared for it.
        prepared: Option<i32>,
        /// Whether a missing source makes no mount, and no error.
        may_be_missing: bool,
    },
    Filesystem {
        kind: String,
        source: String,
        /// Options of the file system.
        data: Vec<(String, Option<String>)>,
        /// `tmpcopyup`
        copy_up: bool,
        /// The index, from [`fd::MOUNTS`] on, of a user namespace to map ids by.
        idmap: Option<i32>,
    },
    /// The cgroup tree.
    Cgroup,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Absolute, in the container.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with permissions.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// The sets of capabilities(7), as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityPlan {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitPlan {
    /// `RLIMIT_*`
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalPlan {
    /// 0 if unknown, like `cols`.
    pub rows: u16,
    pub cols: u16,
    /// Whether line feeds stay as they are: without ONLCR of termios(3).
    pub plain_line_feeds: bool,
}

/// What the process becomes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The program and its arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: CapabilityPlan,
    pub no_new_privileges: bool,
    pub rlimits: Vec<RlimitPlan>,
    /// The terminal to make.
    pub terminal: Option<TerminalPlan>,
    /// Flags of the seccomp filter at [`fd::SECCOMP`], if there is one.
    pub seccomp_flags: Option<u64>,
    pub scheduler: Option<SchedAttr>,
    /// Class and level, as [`crate::sys::sched::set_io_priority`] takes them.
    pub io_priority: Option<(u16, u16)>,
    /// Only of processes that join: the specification has none for the init process.
    pub cpu_affinity: Option<CpuAffinity>,
    /// The execution domain, see personality(2).
    pub personality: Option<u32>,
    /// The name of the session keyring to make.
    pub keyring: Option<String>,
}
