//! What rvm's processes say to one another.
//!
//! Two conversations: the host's with the agent in the guest ([`agent`], ttrpc over vsock), and the
//! host's with the VMM ([`vmm`], JSON over a seqpacket socket). The constants below are the few
//! facts on which both ends of a vsock or a shared directory must agree.
//!
//! This crate depends on none of the others; each program enables the conversations that it takes
//! part in.

use std::time::Duration;

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod cgroup_stats;
#[cfg(feature = "failure")]
pub mod failure;
pub mod id;
pub mod names;
#[cfg(feature = "vmm")]
pub mod vmm;

pub use id::{ContainerId, ExecId, InvalidId, MAX_CONTAINER_ID, ProcessId};

/// The guest's vsock context id. Every sandbox has a vsock of its own, so one number serves all.
pub const GUEST_CID: u32 = 3;

/// The version of [`agent`]'s service, which `Check` answers. It grows with a change after which an
/// older host cannot use a newer agent or the other way round; new fields and calls alone are no
/// such change. An agent that answers 0 predates this constant and speaks version 1.
pub const AGENT_PROTOCOL_VERSION: u32 = 1;

/// The guest port on which the agent serves [`agent`]'s ttrpc service.
pub const AGENT_PORT: u32 = 1024;

/// The guest port on which the agent accepts the standard streams of processes: each connection
/// begins with its stream id, eight big-endian bytes.
pub const STREAM_PORT: u32 = 1025;

/// The host port (at CID 2) to which the agent connects once it listens on its own.
///
/// The vsock device carries no connection into the guest before this: a host program connects and
/// writes at once, and need not try again until the guest is up. The device refuses the connection,
/// so that the agent knows that the device has seen it.
pub const READY_PORT: u32 = 1024;

/// The virtio-fs tag of the shared directory.
pub const SHARED_TAG: &str = "rvm";

/// Where the agent mounts the shared directory. A container's root is
/// `<SHARED_DIR>/<container id>/rootfs`.
pub const SHARED_DIR: &str = "/run/rvm/shared";

/// Where the agent keeps copies of volumes: `<VOLUMES_DIR>/<container id>/<number>`.
pub const VOLUMES_DIR: &str = "/run/rvm/volumes";

/// How long the guest may use what it has cached of a shared file before it asks the host again.
/// The guest sees the host's changes, such as an updated volume, within this time.
pub const SHARED_CACHE_TIMEOUT: Duration = Duration::from_secs(1);

/// Kernel parameter that sets the agent's log filter, in `tracing`'s notation.
pub const PARAM_LOG: &str = "rvm.log";

/// The number of the virtio-mmio slot, counted from 0, that is empty until the machine grows beyond
/// the memory it was started with: then its memory device is in it. Machines that cannot grow have
/// another device there.
pub const MEMORY_SLOT: usize = 4;

/// The number of the first virtio-mmio slot for disks, of machines that have such slots. The slots
/// of disks follow one another.
pub const DISK_SLOT: usize = 6;

/// The most disks that a machine can have at a time. Each slot costs every start a few thousand
/// instructions.
pub const MAX_DISKS: usize = 8;

/// Where the agent mounts the file systems of disks: `<DISKS_DIR>/<container id>/<number>`.
pub const DISKS_DIR: &str = "/run/rvm/disks";

/// The I/O port to which the agent writes one byte to switch the machine off at once.
///
/// It is where QEMU's isa-debug-exit device sits by convention, so both engines have it, and it
/// tells an orderly end from a guest that crashed: every other way for a guest to stop is a reset.
pub const POWER_OFF_PORT: u16 = 0xf4;

/// The byte. QEMU ends with twice its value and one, and with 1 when it fails itself, so it is not
/// 0.
pub const POWER_OFF_BYTE: u8 = 1;
