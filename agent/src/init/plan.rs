//! What a container's first process, or one that joins it, is to do before it runs its program.
//!
//! The agent works this out from config.json (see `container::spec`), validates it and hands it over
//! as JSON in a memory file. Everything in it is plain values: the process that carries it out
//! decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sys::sched::SchedAttr;
use rvm_sys::mount::AttrChange;

/// Descriptors that the process starts with, besides its standard streams.
pub mod fd {
    /// The first of those that the program is to have, up to [`CONTROL`].
    pub const EXTRA: i32 = 3;
    /// The socket to the agent.
    pub const CONTROL: i32 = 64;
    /// The plan.
    pub const PLAN: i32 = 65;
    /// The compiled seccomp filter, if there is one.
    pub const SECCOMP: i32 = 66;
    /// The process whose namespaces to join.
    pub const JOIN: i32 = 67;
    /// The first of the mounts that the agent has prepared.
    pub const MOUNTS: i32 = 68;
}

/// The whole.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What kind of process it is.
    pub role: Role,
    /// What holds for both kinds.
    pub process: ProcessPlan,
    /// How many descriptors from [`fd::EXTRA`] on the program is to have.
    pub extra: u32,
}

/// First process or later one.
#[derive(Debug, Serialize, Deserialize)]
pub enum Role {
    /// Makes the container's file system and waits before it executes.
    Create(Box<ContainerPlan>),
    /// Joins the namespaces of a process of the container.
    Join {
        /// Which of them, as `CLONE_NEW*`.
        namespaces: u64,
        /// Whether there is a user namespace, whose root it then becomes.
        user_namespace: bool,
    },
}

/// The container's own part of the plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The container's id.
    pub id: String,
    /// The root file system's directory in the guest.
    pub rootfs: String,
    /// Whether it ends up read-only.
    pub readonly_rootfs: bool,
    /// Propagation of the root, as `MS_*` flags; 0 where config.json says nothing.
    pub rootfs_propagation: u64,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Nodes to make below /dev; empty if the container's /dev is somebody else's.
    pub devices: Vec<DevicePlan>,
    /// Whether /dev is the container's own, so that its links are made too.
    pub populate_dev: bool,
    /// Whether devices are bind-mounted from the guest, as in a user namespace.
    pub bind_devices: bool,
    /// Paths that are to show nothing.
    pub masked_paths: Vec<String>,
    /// Paths that are to be read-only.
    pub readonly_paths: Vec<String>,
    /// Below /proc/sys, with slashes.
    pub sysctls: BTreeMap<String, String>,
    /// The host name, for the UTS namespace.
    pub hostname: Option<String>,
    /// The domain name, for the UTS namespace.
    pub domainname: Option<String>,
    /// Offsets of the time namespace to make.
    pub time_offsets: Option<Vec<TimeOffset>>,
    /// Whether a cgroup namespace is to be made.
    pub cgroup_namespace: bool,
    /// Whether the network namespace is new.
    pub network_namespace: bool,
    /// Hooks before pivot_root.
    pub create_hooks: Vec<HookPlan>,
    /// Hooks before the program is executed.
    pub start_hooks: Vec<HookPlan>,
    /// For the hooks' state: config.json's version and annotations, and the bundle.
    pub hook_state: HookState,
}

/// Clock id, seconds and nanoseconds.
pub type TimeOffset = (i32, i64, u32);

/// CPU numbers: to begin on, and from execve(2) on. An empty list leaves things as they are.
pub type CpuAffinity = (Vec<u32>, Vec<u32>);

/// What hooks are told of the container, beyond its id, pid and status.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HookState {
    /// The `ociVersion` of config.json.
    pub version: String,
    /// The bundle's directory in the guest.
    pub bundle: String,
    /// The annotations of config.json.
    pub annotations: BTreeMap<String, String>,
}

/// A program to run at a certain point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookPlan {
    /// Absolute.
    pub path: String,
    /// Including the program's own name.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<String>,
    /// Seconds, after which it is killed and has failed.
    pub timeout: Option<u64>,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Where, in the container's root.
    pub destination: String,
    /// What.
    pub source: MountSource,
    /// Attributes of the mount itself.
    pub attributes: AttrChange,
    /// Attributes of the mount and all below it.
    pub recursive: AttrChange,
    /// Propagation to set in order: an `MS_*` flag, perhaps with `MS_REC`.
    pub propagation: Vec<u64>,
}

/// Where a mount comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// What is there already: only its attributes change.
    #[default]
    Existing,
    /// A file or directory of the guest.
    Bind {
        /// Its path in the guest.
        path: String,
        /// With the mounts below it.
        recursive: bool,
        /// The index of the mount that the agent has prepared, if it has, from [`fd::MOUNTS`] on.
        prepared: Option<i32>,
    },
    /// A new mount of a file system.
    Filesystem {
        /// Its type.
        kind: String,
        /// Its source as the file system understands it.
        source: String,
        /// Its options.
        data: Vec<(String, Option<String>)>,
        /// Whether it starts as a copy of what it covers.
        copy_up: bool,
        /// The index of a user namespace to map ids by, if any, from [`fd::MOUNTS`] on.
        idmap: Option<i32>,
    },
    /// The cgroup tree.
    Cgroup,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Absolute, in the container.
    pub path: String,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with permissions.
    pub mode: u32,
    /// The device's numbers.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
}

/// Capabilities as bit sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityPlan {
    /// What programs may gain.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What survives execve(2) of programs that have it as well.
    pub inheritable: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What survives execve(2) of any program.
    pub ambient: u64,
}

/// A resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitPlan {
    /// `RLIMIT_*`
    pub resource: u32,
    /// What is in force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// What the process becomes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The program and its arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// The working directory.
    pub cwd: String,
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The file mode creation mask.
    pub umask: u32,
    /// Capabilities.
    pub capabilities: CapabilityPlan,
    /// Whether execve(2) can grant nothing.
    pub no_new_privileges: bool,
    /// Resource limits.
    pub rlimits: Vec<RlimitPlan>,
    /// A terminal with this many rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// Flags of the seccomp filter at [`fd::SECCOMP`], if there is one.
    pub seccomp_flags: Option<u64>,
    /// The scheduling policy.
    pub scheduler: Option<SchedAttr>,
    /// I/O class and level.
    pub io_priority: Option<(u16, u16)>,
    /// CPUs to run on.
    /// Not of a container's first process: the specification has it for those that join.
    pub cpu_affinity: Option<CpuAffinity>,
    /// The execution domain.
    pub personality: Option<u32>,
    /// The name of the session keyring to make; an exec'd process inherits none.
    pub keyring: Option<String>,
}
