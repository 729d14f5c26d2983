//! Assembles a machine and starts it, or saves it.

mod checkpoint;
mod config;
mod devices;
mod saved;
mod stopwatch;
mod template;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VcpuFd;
use rvm_protocol::failure::{Code, Coded};
use rvm_protocol::vmm::{MachineConfig, StartTimes};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::mptable;
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, BusError};
use crate::fds::{MissingFd, PassedFds};
use crate::hotplug::{DiskError, DiskSlots, MemorySize, NetSlots};
use crate::jail::filter::ThreadKind;
use crate::jail::{self, JailError, OwnDescriptors};
use crate::kvm::{KvmError, Vm};
use crate::memory::{self, MemoryError, image};
use crate::vcpus::{RunState, VcpuError, Vcpus};
use crate::virtio::console::ConsoleLog;
use crate::virtio::fs::RemovedFiles;
use crate::virtio::thread::DeviceThread;

use devices::{Devices, Role, WorkerThread, failed};
use rvm_sys::fault_point;
use saved::{Hardware, MachineState, Shape};
use stopwatch::Stopwatch;

pub use checkpoint::{Files as CheckpointFiles, Unfinished};
pub use saved::SavedError;
#[cfg(any(test, feature = "fuzzing"))]
pub use saved::read_any as read_any_state;
pub use template::make;

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("machine configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Fd(#[from] MissingFd),
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("cannot create the {device} device")]
    Device {
        device: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("cannot create the block device")]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Registers(#[from] RegisterError),
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Saved(#[from] SavedError),
}

impl Coded for MachineError {
    fn code(&self) -> Code {
        match self {
            Self::Config(_) | Self::Fd(_) => Code::InvalidArgument,
            Self::Memory(MemoryError::Map { .. }) => Code::Unavailable,
            _ => Code::Internal,
        }
    }
}

/// A running machine, as the main thread holds it.
pub struct Machine {
    /// The devices that work on the main thread.
    pub main_devices: DeviceThread,
    pub vcpus: Vcpus,
    pub memory: MemorySize,
    pub nets: NetSlots,
    pub disks: DiskSlots,
    pub times: StartTimes,
    /// Why the machine was not restored from its template, if it has one and was not.
    pub refusal: Option<SavedError>,
    /// The checkpoint that the machine has gone on from and that is not whole yet.
    pub unfinished: Option<Unfinished>,
    /// Has the streams of a checkpoint reset that no host program has claimed.
    drop_streams: Option<Arc<EventFd>>,
    /// Where what removed files hold is written to.
    removed: Arc<RemovedFiles>,
    shape: Shape,
    /// The blocks of memory that are mapped from a file.
    mapped: Vec<u64>,
    /// When this descriptor is closed KVM disconnects all interrupts, even if the vCPUs still run.
    pub vm: Vm,
}

/// Enters the jail, assembles the machine and starts it. The calling thread is the process's only
/// one.
pub fn start(config: &MachineConfig, fds: Vec<OwnedFd>) -> Result<Machine, MachineError> {
    let mut stopwatch = Stopwatch::start();
    let mut fds = PassedFds::new(fds);
    config::validate(config)?;

    let own = enter_jail(config)?;
    let jail_ns = stopwatch.lap();
    fault_point!("vmm.jailed").map_err(MachineError::Thread)?;

    let kernel = Kernel::take(config, &mut fds)?;
    let Frame {
        mut hardware,
        saved,
        refusal,
    } = Frame::new(config, &kernel, &mut fds)?;
    let role = Role::of(config, saved.as_ref())?;
    let (devices, bus) = connect(config, &mut fds, &mut hardware, &role, own)?;
    let machine_ns = stopwatch.lap();
    fault_point!("vmm.made").map_err(MachineError::Thread)?;

    let vcpus = match &saved {
        Some(saved) => saved.restore((&hardware.vm, &bus), config.max_vcpus, &config.disks)?,
        None => kernel.load(config, &hardware, bus.slots())?,
    };
    let kernel_ns = stopwatch.lap();
    fault_point!("vmm.loaded").map_err(MachineError::Thread)?;

    let state = RunState::new(bus).map_err(MachineError::Thread)?;
    spawn_workers(devices.workers, &state)?;
    let vcpus = Vcpus::start(vcpus, state, config.max_vcpus)?;
    main_thread_kind(config).apply()?;
    fault_point!("vmm.threads").map_err(MachineError::Thread)?;
    Ok(Machine {
        main_devices: devices.main,
        vcpus,
        memory: MemorySize::new(
            (config.memory_mib, hardware.memory),
            (hardware.hotplug, hardware.sizes, devices.plugged),
            devices.balloon,
        ),
        nets: devices.nets,
        disks: devices.disks,
        times: StartTimes {
            jail_ns,
            machine_ns,
            kernel_ns,
            threads_ns: stopwatch.lap(),
            restored: saved.is_some(),
        },
        refusal,
        drop_streams: role.drop_streams(),
        removed: devices.removed,
        shape: Shape::of_any_guest(config),
        mapped: saved.map(|saved| saved.blocks).unwrap_or_default(),
        unfinished: None,
        vm: hardware.vm,
    })
}

/// A machine's hardware, with the state that it is to take over.
struct Frame {
    hardware: Hardware,
    saved: Option<MachineState>,
    refusal: Option<SavedError>,
}

impl Frame {
    /// Those of the machine's checkpoint, or of its template, if it has one that can be used, or
    /// else new ones.
    fn new(
        config: &MachineConfig,
        kernel: &Kernel,
        fds: &mut PassedFds,
    ) -> Result<Self, MachineError> {
        let kvm = fds.take(config.kvm)?;
        let mut refusal = None;
        if let Some(files) = &config.checkpoint {
            let (state, memory) = (fds.take(files.state)?, fds.take(files.memory)?);
            let shape = Shape::of_any_guest(config);
            let opened = MachineState::open((state.into(), memory.into()), &shape, &kvm)?;
            return Ok(Self::of(opened));
        }
        if let Some(files) = &config.template {
            let (state, memory) = (fds.take(files.state)?, fds.take(files.memory)?);
            let shape = kernel.shape(config);
            match MachineState::open((state.into(), memory.into()), &shape, &kvm) {
                Ok((saved, hardware)) => {
                    let memory = hardware.memory.get();
                    image::copy(&memory, &saved.blocks, &config.written);
                    return Ok(Self::of((saved, hardware)));
                }
                Err(error) => refusal = Some(error),
            }
        }
        let memory = memory::map(config.memory_mib)?;
        let vm = Vm::new(kvm, Arc::clone(&memory))?;
        let sizes = (config.memory_mib, config.max_memory_mib);
        Ok(Self {
            hardware: Hardware::of(memory, vm, sizes),
            saved: None,
            refusal,
        })
    }

    fn of((saved, hardware): (MachineState, Hardware)) -> Self {
        Self {
            hardware,
            saved: Some(saved),
            refusal: None,
        }
    }
}

/// The guest's kernel and its initramfs.
struct Kernel {
    kernel: File,
    initramfs: File,
}

impl Kernel {
    fn take(config: &MachineConfig, fds: &mut PassedFds) -> Result<Self, MachineError> {
        Ok(Self {
            kernel: fds.take(config.kernel)?.into(),
            initramfs: fds.take(config.initramfs)?.into(),
        })
    }

    /// Loads it, and creates the vCPUs that are to run it.
    fn load(
        mut self,
        config: &MachineConfig,
        hardware: &Hardware,
        slots: usize,
    ) -> Result<Vec<VcpuFd>, MachineError> {
        let (memory, vm) = (hardware.memory.get(), &hardware.vm);
        let cmdline = config::cmdline(config, slots);
        let entry = boot::load(&memory, &mut self.kernel, &mut self.initramfs, &cmdline)?;
        mptable::write(&memory, config.max_vcpus, slots).map_err(RegisterError::Memory)?;
        registers::write_tables(&memory)?;
        Ok(vm.create_vcpus((config.boot_vcpus, config.max_vcpus), entry)?)
    }

    /// What a template must agree with.
    fn shape(&self, config: &MachineConfig) -> Shape {
        Shape::of(config, [&self.kernel, &self.initramfs])
    }
}

/// Creates the devices and connects them to the machine.
fn connect(
    config: &MachineConfig,
    fds: &mut PassedFds,
    hardware: &mut Hardware,
    role: &Role,
    own: OwnDescriptors,
) -> Result<(Devices, Bus), MachineError> {
    let console = ConsoleLog::new(fds.take(config.console)?.into()).map_err(failed("console"))?;
    let console = Arc::new(Mutex::new(console));
    let devices = Devices::create(config, fds, (hardware, &console), role, own)?;
    if config.checkpoint.is_some_and(|files| files.files_later) {
        devices.files.slot.postpone_restore();
    }
    let bus = Bus::new(&hardware.vm, &devices.slots, devices.files.clone(), console)?;
    Ok((devices, bus))
}

fn spawn_workers(workers: Vec<WorkerThread>, state: &Arc<RunState>) -> Result<(), MachineError> {
    for worker in workers {
        let state = Arc::clone(state);
        worker.spawn(move |reason| state.fail(reason))?;
    }
    Ok(())
}

/// Enters the jail of a machine.
pub fn enter_jail(config: &MachineConfig) -> Result<OwnDescriptors, JailError> {
    jail::enter_file_server(&config.shared_dir, config.parent)
}

/// The main thread may create vCPUs only if the machine can have more than it boots with.
fn main_thread_kind(config: &MachineConfig) -> ThreadKind {
    match config.boot_vcpus < config.max_vcpus {
        true => ThreadKind::MainWithCpuHotplug,
        false => ThreadKind::Main,
    }
}
