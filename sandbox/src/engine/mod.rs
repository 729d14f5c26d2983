//! The engines that run a sandbox's machine: our VMM on KVM, or QEMU's software CPU.
//!
//! Everything that rvm knows of an engine stands in its descriptor, [`Engine`], which is the only
//! thing of it that the rest of rvm looks at. Each engine is a folder here.

mod child;
pub mod choice;
mod console;
mod exit;
mod fds;
mod files;
mod host_cache;
mod kvm;
mod machine;
mod qemu;
mod spawn;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rvm_protocol::failure::Failure;
use rvm_protocol::vmm::{ChannelError, DiskConfig, Rates};

use crate::cgroup::{Cgroup, Overhead};
use crate::checkpoint::Image;
use crate::config::{Config, EngineKind};
use crate::host::memory_policy::MemoryPolicy;
use crate::network::{NicBackend, NicLimits};
use crate::sizing::Size;

pub(crate) use console::console_tail;
pub use files::check_host_memory;
pub use kvm::template::{Created, Prepared, Template, TemplateError, TemplateInfo, Templates};
pub use machine::{Machine, MachineEnd, MachineEnded, Plug, Save, Unplug, Vm};
pub use spawn::SpawnError;
#[cfg(any(test, feature = "fuzzing"))]
pub use {kvm::receive_any_event, kvm::template::read_any_templates, qemu::receive_any};

/// An engine.
pub struct Engine {
    /// Its name in the configuration and in records.
    pub kind: EngineKind,
    /// Its name in the output of `rvm check`.
    pub title: &'static str,
    /// What its processes take of the host for a machine of any size.
    pub overhead: Overhead,
    /// How long a guest may take until its agent answers, if the configuration does not say.
    pub start_timeout: Duration,
    /// How many network cards a machine can have when it starts.
    pub nic_limits: NicLimits,
    /// Whether network cards can be plugged into a running machine and unplugged.
    pub net_hotplug: Support,
    /// Whether disks can be plugged into a running machine and unplugged.
    pub disk_hotplug: Support,
    /// How many disks a machine that starts with so many network cards can have at a time.
    pub disk_slots: fn(usize) -> usize,
    /// Whether a running machine can be given more memory than it started with.
    pub memory_hotplug: bool,
    /// Whether a machine's use of its devices can be limited.
    pub rate_limits: bool,
    /// Whether machines can be restored from templates.
    templates: Support,
    /// Whether machines can be saved to checkpoints and restored from them.
    pub checkpoints: Support,
    /// Looks whether the engine works here. Cheap: every start does it where the configuration says
    /// `auto`.
    probe: fn(&Config) -> Verdict,
    /// Looks more closely, for `rvm check`.
    pub check: fn(&Config) -> Verdict,
    /// Starts the processes of a machine. It may still fail to come up; see [`MachineEnded`].
    /// Called within a tokio runtime, on a thread that lives as long as the machine.
    start: fn(Plan<'_>) -> Result<Box<dyn Vm>, EngineError>,
}

/// Whether an engine can do something; if not, the words with which it is refused.
pub type Support = Result<(), &'static str>;

/// Whether an engine works on this host, and in one line why or why not.
pub type Verdict = Result<String, String>;

impl Engine {
    /// Starts a machine.
    pub fn start(&'static self, plan: Plan<'_>) -> Result<Machine, EngineError> {
        let vm = match plan.memory_policy {
            None => (self.start)(plan)?,
            Some(policy) => policy
                .during(|| (self.start)(plan))
                .map_err(io_failed("set the memory policy of its processes"))??,
        };
        Ok(Machine::drive(self, vm))
    }

    /// The templates of its machines, if it can have any.
    pub fn templates<'a>(&self, config: &'a Config) -> Result<Templates<'a>, EngineError> {
        self.templates.map_err(EngineError::Unsupported)?;
        Ok(Templates::new(config))
    }
}

/// The engine of this name.
pub fn of(kind: EngineKind) -> &'static Engine {
    match kind {
        EngineKind::Kvm => &kvm::ENGINE,
        EngineKind::Qemu => &qemu::ENGINE,
    }
}

/// What a machine is made of, whatever runs it.
pub struct Plan<'a> {
    /// The size that it starts with.
    pub size: Size,
    /// The size that it can be given while it runs.
    pub max: Size,
    /// The memory nodes of the host that its memory comes from.
    pub memory_policy: Option<&'a MemoryPolicy>,
    /// The control groups of its processes, where the calling process is in others.
    pub group: Option<&'a Cgroup>,
    /// The guest's kernel and initramfs, more kernel parameters, and the programs that run
    /// machines.
    pub config: &'a Config,
    /// The sandbox's directory.
    pub dir: &'a Path,
    /// The shared directory.
    pub shared: &'a Path,
    /// The file that the guest's console goes to.
    pub console: &'a Path,
    /// Guest ports and the sockets that lead to them.
    pub ports: Vec<(u32, UnixListener)>,
    /// Network cards; as many as [`Engine::nic_limits`] allows.
    pub nets: Vec<NicBackend>,
    /// Empty slots for disks; as many as [`Engine::disk_slots`] allows.
    pub disk_slots: usize,
    /// How fast it may use its devices. None but the default unless [`Engine::rate_limits`].
    pub rates: Rates,
    /// A template of such a machine with at most one network card.
    pub template: Option<Arc<Template>>,
    /// The checkpoint that the machine goes on from, of the engine's own making, and the disks that
    /// it has there.
    pub checkpoint: Option<(&'a Image, Vec<PlacedDisk>)>,
}

/// A disk that is in its slot when a machine starts.
pub struct PlacedDisk {
    /// One of the slots for disks.
    pub slot: usize,
    /// A block device or image file.
    pub file: File,
    /// What the guest sees of it.
    pub disk: DiskConfig,
    /// What messages call it.
    pub name: String,
}

/// A machine could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file that the machine needs is missing or cannot be opened.
    #[error("cannot open {what} {}", path.display())]
    Open {
        /// What the file is for.
        what: &'static str,
        /// Its path, as configured.
        path: PathBuf,
        /// From open(2).
        #[source]
        source: io::Error,
    },
    /// Making a socket or descriptor for the machine failed.
    #[error("{action}")]
    Io {
        /// What was tried, as a sentence without its subject.
        action: &'static str,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// The file that the configuration names as the kernel is none.
    #[error(
        "the guest kernel {} is not an ELF file; guest-kernel/build makes one, and kernel in rvm's \
         configuration names it", .0.display()
    )]
    Kernel(PathBuf),
    /// rvm-vmm did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// rvm-vmm refused a request, or ended before it answered.
    #[error("rvm-vmm refuses to {action}: {failure}")]
    Refused {
        /// What was asked for, as an infinitive.
        action: &'static str,
        /// Why not, with a code for the engine's callers.
        failure: Failure,
    },
    /// A request did not reach rvm-vmm.
    #[error("cannot {action}")]
    Channel {
        /// What was to be asked for, as an infinitive.
        action: &'static str,
        /// From the control socket.
        #[source]
        source: ChannelError,
    },
    /// The engine limits no rates. With the name of the limit.
    #[error("{0} limits a rate, which this engine cannot do; take the kvm engine, or say \"off\"")]
    NoRates(String),
    /// The engine cannot do this; the words are those of its descriptor.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The host has too little memory.
    #[error(
        "the machine needs {needed} MiB of memory and the host has {available} MiB available; \
         lower linux.resources.memory.limit in config.json or memory_mib in rvm's configuration"
    )]
    HostMemory {
        /// The machine's memory in MiB.
        needed: u64,
        /// MemAvailable and SwapFree of the host, in MiB.
        available: u64,
    },
}

fn io_failed(action: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Io { action, source }
}
