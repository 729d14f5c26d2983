//! What runs a sandbox's machine: our VMM on KVM, or QEMU's software CPU.

pub mod choice;
pub mod kvm;
pub mod probe;
pub mod qemu;
pub mod qemu_args;
mod qmp;
pub mod remembered;
pub mod spawn;
pub mod tsc;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::EngineKind;
use crate::engine::spawn::SpawnError;
use crate::host::memory::available_memory_mib;
use crate::host::process::ProcessId;
use crate::network::{Mac, NetCard, Room};
use crate::sizing::Size;
use rvm_protocol::vmm::{ChannelError, StartTimes};

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file the machine is made of.
    #[error("cannot open {what} {}", path.display())]
    Open {
        /// What it is for.
        what: &'static str,
        /// Which path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A socket or a descriptor.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The kernel is none.
    #[error(
        "the guest kernel {} is not an ELF file; guest-kernel/build makes one, and kernel in rvm's \
         configuration names it", .0.display()
    )]
    Kernel(PathBuf),
    /// rvm-vmm.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// rvm-vmm does not do what it is asked for.
    #[error("rvm-vmm refuses to {action}: {reason}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// Why not.
        reason: String,
    },
    /// The control socket.
    #[error("cannot {action}")]
    Channel {
        /// What was to be asked for.
        action: &'static str,
        /// The reason.
        #[source]
        source: ChannelError,
    },
    /// The machine has no room for another network card.
    #[error(
        "a machine of the qemu engine cannot get more network cards while it runs; connect the \
         container to its networks before it is started"
    )]
    NoHotplug,
    /// The host has too little memory.
    #[error(
        "the machine needs {needed} MiB of memory and the host has {available} MiB available; \
         lower linux.resources.memory.limit in config.json or memory_mib in rvm's configuration"
    )]
    HostMemory {
        /// In MiB.
        needed: u64,
        /// In MiB.
        available: u64,
    },
}

/// What a machine is made of, whatever runs it.
pub struct Plan<'a> {
    /// Its size.
    pub size: Size,
    /// The size that it can be given while it runs.
    pub max: Size,
    /// The guest's kernel.
    pub kernel: &'a Path,
    /// The guest's initramfs.
    pub initramfs: &'a Path,
    /// More kernel parameters.
    pub kernel_params: &'a str,
    /// The rvm-vmm binary.
    pub vmm: &'a Path,
    /// The sandbox's directory.
    pub dir: &'a Path,
    /// The shared directory.
    pub shared: &'a Path,
    /// Where the guest's console goes.
    pub console: &'a Path,
    /// Guest ports and the sockets that lead to them.
    pub ports: Vec<(u32, UnixListener)>,
    /// Network cards; as many as [`Engine::net_room`] allows.
    pub nets: Vec<NetCard>,
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEnd {
    /// The guest switched it off.
    PowerOff,
    /// The guest reset itself: its kernel panicked, or worse. With the place, where the engine tells.
    GuestReset(Option<String>),
    /// The process that ran it failed, or was killed. In one line.
    Failed(String),
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched its machine off"),
            Self::GuestReset(None) => f.write_str("the guest crashed"),
            Self::GuestReset(Some(place)) => write!(f, "the guest crashed ({place})"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// A running machine. Dropping it ends it.
#[async_trait::async_trait]
pub trait Machine: Send + Sync {
    /// The processes that run it.
    fn processes(&self) -> io::Result<Vec<ProcessId>>;

    /// Returns when the machine has ended. May be given up and called again, but only by one at a
    /// time. What else the machine has to say arrives while somebody waits for this.
    async fn ended(&self) -> MachineEnd;

    /// Where the engine's own time went, where it tells.
    fn start_times(&self) -> Option<StartTimes>;

    /// Plugs a network card in. The guest has yet to look for it.
    async fn plug_net(&self, card: NetCard) -> Result<(), EngineError>;

    /// Takes out a network card that the guest has put away. False if this machine keeps its cards;
    /// then it can be used again.
    async fn unplug_net(&self, mac: Mac) -> Result<bool, EngineError>;

    /// Begins to change the machine's size, within what its plan has room for. The guest has yet to
    /// go along.
    async fn resize(&self, size: Size) -> Result<(), EngineError>;

    /// Waits until the guest has the memory that was asked for last, or for good if it never will.
    /// False if this machine cannot have its guest give memory back.
    async fn resized(&self, size: Size) -> bool;

    /// Ends the machine at once and waits until its processes are gone.
    fn kill(&self) -> io::Result<()>;
}

/// What runs machines.
pub trait Engine: Send + Sync {
    /// Its name.
    fn kind(&self) -> EngineKind;

    /// How long a guest may take until its agent answers, if the configuration does not say.
    fn start_timeout(&self) -> Duration;

    /// Whether a running machine can be given more memory.
    fn grows_memory(&self) -> bool;

    /// How many network cards a machine can have when it starts.
    fn net_room(&self) -> Room;

    /// Starts a machine. It may still fail to come up; see [`Machine::ended`].
    fn start(&self, plan: Plan<'_>) -> Result<Box<dyn Machine>, EngineError>;
}

fn open(what: &'static str, path: &Path) -> Result<File, EngineError> {
    File::open(path).map_err(|source| EngineError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Opens the kernel, and looks at its first bytes: a wrong file is easily configured, and what it
/// does to a machine explains nothing.
fn open_kernel(path: &Path) -> Result<File, EngineError> {
    use std::os::unix::fs::FileExt;
    let file = open("the guest kernel (kernel in rvm's configuration)", path)?;
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).unwrap_or(0);
    if read < magic.len() || magic != *b"\x7fELF" {
        return Err(EngineError::Kernel(path.to_owned()));
    }
    Ok(file)
}

fn open_initramfs(path: &Path) -> Result<File, EngineError> {
    open(
        "the guest's initramfs (initramfs in rvm's configuration)",
        path,
    )
}

fn create_console(path: &Path) -> Result<File, EngineError> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| EngineError::Open {
            what: "the console's log",
            path: path.to_owned(),
            source,
        })
}

fn io_failed(action: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Io { action, source }
}

/// Refuses a machine that the host could only run by killing something else. Memory is given to a
/// guest as it touches it, so one that fits may still meet the end of the host's memory later.
pub fn check_host_memory(needed: u64) -> Result<(), EngineError> {
    match available_memory_mib() {
        Some(available) if needed > available => Err(EngineError::HostMemory { needed, available }),
        _ => Ok(()),
    }
}
