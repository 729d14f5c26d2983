//! The messages between the host and `rvm-vmm`.
//!
//! `rvm-vmm` is started with one end of a seqpacket socket as its standard input. The first packet
//! is a configuration ([`MachineConfig`], [`TemplateConfig`], [`QemuConfig`] or [`BackendConfig`])
//! with every descriptor that it names; the VMM opens nothing by path after it has entered its
//! jail. From then on the VMM sends [`Event`]s and answers [`Request`]s. It ends when the host
//! closes the socket.
//!
//! Every packet begins with [`PROTOCOL_VERSION`], and [`Channel`] refuses a packet of another
//! version: rvm and rvm-vmm come from one build, and an upgrade that replaced only one of them must
//! fail with a clear message.

mod channel;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

pub use crate::{DISK_SLOT, MAX_DISKS};
pub use channel::{Channel, ChannelError, MAX_FDS, MAX_PACKET};

/// The version of the messages in this module. Any change that a peer of the previous version would
/// misread increments it.
pub const PROTOCOL_VERSION: u32 = 6;

/// The index of a descriptor among those that came with the configuration, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub usize);

/// The configuration of `rvm-vmm machine`: one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// The pid, in the host's pid namespace, of the process that started this one. The VMM ends
    /// when that process ends.
    pub parent: u32,
    /// Virtual CPUs that the guest kernel brings up at boot.
    pub boot_vcpus: u8,
    /// Virtual CPUs that the guest's tables declare. Those past `boot_vcpus` are created when the
    /// machine grows, and then wait for the agent to bring them online.
    pub max_vcpus: u8,
    /// Memory at boot, in MiB.
    pub memory_mib: u64,
    /// The most memory that the machine can be resized to, in MiB.
    pub max_memory_mib: u64,
    /// Kernel parameters beyond those that the VMM adds itself.
    pub cmdline: String,
    /// An ELF kernel for x86-64.
    pub kernel: FdIndex,
    /// A cpio archive, which the guest kernel unpacks.
    pub initramfs: FdIndex,
    /// The log of the guest's console: a regular file, open for writing.
    pub console: FdIndex,
    /// /dev/kvm, open for reading and writing.
    pub kvm: FdIndex,
    /// The directory that is served over virtio-fs. It becomes the root of the jail.
    pub shared_dir: PathBuf,
    /// The guest ports that host programs can connect to.
    pub vsock: Vec<VsockPort>,
    /// Network cards, in the order in which the guest names them: eth0, eth1, …
    pub nets: Vec<Net>,
    /// Empty slots for network cards that are plugged in later. With `nets` at most [`MAX_NETS`].
    pub spare_nets: usize,
    /// Slots for disks, from [`DISK_SLOT`] on. They are empty but for `disks`.
    pub spare_disks: usize,
    /// The disks that a machine which goes on from a checkpoint had. Others start with none.
    pub disks: Vec<PlacedDisk>,
    /// Whether disks may be mapped into the guest's address space, see [`DiskConfig::layer`].
    pub map_layers: bool,
    /// How fast the guest may use its devices.
    pub rates: Rates,
    /// The template that the machine is restored from, open for reading. None boots the kernel, as
    /// does a template that cannot be used ([`Event::TemplateRefused`]).
    pub template: Option<TemplateFiles>,
    /// The pages of the template's memory that machines write to before a program of a container
    /// runs, as far as that is known: the machine has its own copies of them from the start. At
    /// most [`MAX_PAGE_RUNS`], in any order.
    pub written: Vec<PageRun>,
    /// The checkpoint that the machine goes on from; a machine that cannot ends at once. It has the
    /// size and the slots of the machine that was saved, its cards and its disks.
    pub checkpoint: Option<CheckpointFiles>,
}

/// A checkpoint: a machine as [`Request::Save`] has written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFiles {
    /// As [`TemplateFiles::state`].
    pub state: FdIndex,
    /// As [`TemplateFiles::memory`].
    pub memory: FdIndex,
    /// What files hold that a program has open and that have no name any more.
    pub removed: FdIndex,
    /// A part of the shared files is not there yet. The guest's requests that concern files wait
    /// for [`Request::Adopted`].
    pub files_later: bool,
}

/// How fast a guest may use its devices: each network card and each disk, in `machine` and plugged
/// in later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Packets that a card receives.
    pub net_rx: Rate,
    /// Packets that a card sends.
    pub net_tx: Rate,
    /// Requests of a disk; those that read and write have bytes.
    pub disk: Rate,
}

/// The limits of one direction of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Of bytes; None for no limit.
    pub bytes: Option<TokenBucket>,
    /// Of packets or requests.
    pub operations: Option<TokenBucket>,
}

/// A limit as Firecracker's: a bucket of tokens, which each byte or operation takes one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// The tokens in a full bucket, at least 1.
    pub size: u64,
    /// The milliseconds in which an empty bucket becomes full, at least 1.
    pub refill_ms: u64,
    /// Tokens beside the full bucket at the start, which are spent first and do not come back.
    pub burst: u64,
}

/// The files of a template: a machine as it was when its agent was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFiles {
    /// The state of CPUs, interrupt controllers and devices: a regular file.
    pub state: FdIndex,
    /// The memory: a regular file, at best on a tmpfs. Restored machines map it privately.
    pub memory: FdIndex,
}

/// The most runs of pages in a configuration.
pub const MAX_PAGE_RUNS: usize = 1024;

/// Pages of 4 KiB that follow one another in the file of a template's memory, within 2 MiB: the
/// number of the first, counted from 0, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun(pub u32, pub u32);

/// The configuration of `rvm-vmm template`, which boots a machine until its agent is ready, writes
/// it to a template, sends [`Event::TemplateSaved`] and ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// The machine. Those that are restored from the template agree with it in everything but
    /// `parent`, `console`, `shared_dir`, `vsock`, `rates` and `nets`; each of their `nets` takes
    /// the place of one of its `spare_nets`. It has no `nets`, no `vsock` and no `template` itself.
    pub machine: MachineConfig,
    /// The files to write, empty and open for reading and writing.
    pub files: TemplateFiles,
}

/// A guest port and the Unix socket through which host programs reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockPort {
    /// The vsock port that the guest listens on.
    pub port: u32,
    /// A listening Unix stream socket.
    pub listener: FdIndex,
}

/// The most virtio-mmio slots of a machine.
pub const MAX_SLOTS: usize = 19;

/// The most virtio-net devices of a machine, hotplugged ones included.
pub const MAX_NETS: usize = 12;

/// A virtio-net device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A nonblocking TAP with IFF_NO_PI and IFF_VNET_HDR set and headers of [`TAP_HEADER`] bytes.
    pub tap: FdIndex,
    /// The MAC address that the guest's driver uses.
    pub mac: [u8; 6],
}

/// The length of struct virtio_net_hdr with num_buffers (TUNSETVNETHDRSZ).
pub const TAP_HEADER: usize = 12;

/// The configuration of `rvm-vmm qemu`, which enters a jail and executes QEMU there. It sends
/// [`Event::Stopped`] if it cannot; if it can, the control socket closes when QEMU takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// As [`MachineConfig::parent`].
    pub parent: u32,
    /// QEMU's path. It is the same inside the jail, so it lies below /usr.
    pub program: PathBuf,
    /// QEMU's arguments. The descriptors that came with the configuration have the numbers
    /// [`QEMU_FIRST_FD`] and up.
    pub args: Vec<String>,
    /// An empty directory in which the jail's root is assembled.
    pub stage_dir: PathBuf,
}

/// The number of the first descriptor that QEMU inherits.
pub const QEMU_FIRST_FD: i32 = 10;

/// The configuration of `rvm-vmm backend`, which serves one QEMU: vsock and shared files over
/// vhost-user, and the guest's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// As [`MachineConfig::parent`].
    pub parent: u32,
    /// A listening Unix socket to which QEMU's vhost-user-vsock device connects once.
    pub vsock_device: FdIndex,
    /// The same for its vhost-user-fs device.
    pub files_device: FdIndex,
    /// As [`MachineConfig::vsock`].
    pub vsock: Vec<VsockPort>,
    /// A connected stream from which the guest's console is read.
    pub console_input: FdIndex,
    /// The log of the guest's console: a regular file, open for writing.
    pub console: FdIndex,
    /// As [`MachineConfig::shared_dir`].
    pub shared_dir: PathBuf,
}

/// A request of the host to a running machine. The VMM answers each with [`Event::Done`] or
/// [`Event::Refused`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Stops the virtual CPUs until [`Request::Resume`].
    Pause,
    /// Lets the virtual CPUs run again.
    Resume,
    /// Resizes the machine. The answer comes when the guest can begin to follow;
    /// [`Event::Resized`] comes when the guest has the memory.
    Resize {
        /// The number of virtual CPUs. CPUs are only added, never removed.
        vcpus: u8,
        /// Memory in MiB. The VMM plugs what exceeds the memory at boot, and inflates the balloon
        /// by what falls short of it.
        memory_mib: u64,
    },
    /// Plugs a network card in whose TAP comes with the request, see [`Net::tap`].
    PlugNet {
        /// The card's MAC address, which also identifies it to [`Request::UnplugNet`].
        mac: [u8; 6],
    },
    /// Unplugs a network card.
    UnplugNet {
        /// The MAC address that the card was plugged in with.
        mac: [u8; 6],
    },
    /// Plugs a disk in: a regular file or block device that comes with the request, open for
    /// reading, and for writing unless `read_only`. It has the size that it has now.
    PlugDisk {
        /// An empty slot: one of [`MachineConfig::spare_disks`] from [`DISK_SLOT`] on.
        slot: usize,
        /// What the guest sees of it.
        disk: DiskConfig,
    },
    /// Unplugs the disk in a slot.
    UnplugDisk {
        /// The slot that the disk was plugged into.
        slot: usize,
    },
    /// Writes the machine to a checkpoint. Four descriptors come with the request: the empty files
    /// of [`CheckpointFiles`] in their order, open for reading and writing, and KVM's device.
    Save {
        /// Let the machine go on. The answer comes when it does, and [`Event::Written`] when the
        /// files are written; until then it cannot be saved again. A machine that does not go on
        /// stands still while they are written, and ends with [`StopReason::Saved`] in place of an
        /// answer.
        go_on: bool,
        /// The host may have swapped pages out, which mincore(2) does not tell of.
        has_swap: bool,
    },
    /// Host programs stand for all containers of a machine that was restored from a checkpoint.
    /// Shared files that were to come later are there: those that the guest knows are opened. The
    /// streams that no host program has claimed are reset. A program claims a stream by a
    /// connection to the port for streams ([`crate::STREAM_PORT`]) that begins with the id that the
    /// stream began with.
    Adopted,
}

/// What a guest sees of a disk, beside its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Refuses every write of the guest (VIRTIO_BLK_F_RO).
    pub read_only: bool,
    /// The disk's serial number, at most 20 bytes.
    pub serial: String,
    /// The size of its logical blocks in bytes, a power of two from 512 to [`MAX_BLOCK_SIZE`].
    pub block_size: u32,
    /// The guest only maps and reads files of it, as those of an image's layer. It is mapped into
    /// the guest's address space (virtio-pmem) if that is allowed, its rate is not limited, it is
    /// read-only and has at most [`MAX_MAPPED_BYTES`], and the CPUs can address it.
    pub layer: bool,
}

/// A disk that is in its slot when the machine starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedDisk {
    /// As [`Request::PlugDisk::slot`].
    pub slot: usize,
    /// As the file that comes with [`Request::PlugDisk`].
    pub file: FdIndex,
    /// What the guest sees of it.
    pub disk: DiskConfig,
    /// What messages call it.
    pub name: String,
}

/// The largest logical block of a disk: a guest's kernel takes none that is larger than its pages.
pub const MAX_BLOCK_SIZE: u32 = 4096;

/// The largest disk that is mapped into a guest's address space: 256 MiB. The guest spends a 64th
/// of its size on page structures, which costs more than it saves for a large image of which little
/// is used.
pub const MAX_MAPPED_BYTES: u64 = 256 << 20;

/// A message of the VMM to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The virtual CPUs run.
    Started(Box<StartTimes>),
    /// The last request was carried out.
    Done,
    /// The last request could not be carried out.
    Refused(Failure),
    /// The guest has the memory that the last [`Request::Resize`] asked for. Sent once for each.
    Resized {
        /// The machine's memory in MiB.
        memory_mib: u64,
    },
    /// The files of the last [`Request::Save`] are written, after which the machine has gone on, or
    /// why they could not be. Sent once for each.
    Written(Option<Failure>),
    /// The machine's template cannot be used, for this reason; the machine boots its kernel.
    TemplateRefused(Failure),
    /// The template is written, and the VMM is about to exit.
    TemplateSaved,
    /// The machine has ended, and the VMM is about to exit.
    Stopped(StopReason),
}

/// How long each stage took between the arrival of the configuration and the first instruction of
/// the guest, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTimes {
    /// Entering the jail.
    pub jail_ns: u64,
    /// Creating the virtual machine, its memory and its devices.
    pub machine_ns: u64,
    /// Loading the kernel and the initramfs, or the template.
    pub kernel_ns: u64,
    /// Installing system call filters and starting the threads.
    pub threads_ns: u64,
    /// Whether the machine was restored from its template.
    pub restored: bool,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The agent powered the machine off.
    PowerOff,
    /// The machine is in a checkpoint.
    Saved,
    /// The guest reset itself. rvm's guests never do so on purpose: the kernel panicked, or worse.
    GuestReset {
        /// The CPU that reset and the registers that tell where it was, in one line.
        place: String,
    },
    /// The VMM could not start the machine, or could not go on.
    Failed(Failure),
}

/// The result of `rvm-vmm probe`, printed as one line of JSON: whether the host's KVM can run a
/// kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kvm", rename_all = "kebab-case")]
pub enum ProbeReport {
    /// A guest ran correctly, at a speed that only hardware virtualization reaches.
    Usable {
        /// The time from the machine's creation to its end, in nanoseconds.
        nanoseconds: u64,
        /// Millions of instructions per second.
        mips: u64,
    },
    /// A guest ran, but so slowly that its kernel code must be emulated.
    Slow {
        /// Millions of instructions per second.
        mips: u64,
    },
    /// A guest could not execute what a kernel needs.
    Wrong {
        /// The instruction or exit that failed, in one line.
        reason: String,
    },
    /// No virtual machine could be created.
    Unavailable {
        /// The step that failed and why, in one line.
        reason: String,
    },
}
