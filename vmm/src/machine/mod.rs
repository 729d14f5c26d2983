//! Assembles a machine and starts it.

mod config;
mod devices;
mod stopwatch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rvm_protocol::failure::{Code, Coded};
use rvm_protocol::vmm::{MachineConfig, StartTimes};

use crate::arch::x86_64::mptable;
use crate::arch::x86_64::registers::{self, RegisterError};
use crate::boot::{self, BootError};
use crate::bus::{Bus, BusError};
use crate::fds::{MissingFd, PassedFds};
use crate::hotplug::{DiskSlots, HotplugMemory, MemorySize, NetSlots};
use crate::jail::filter::ThreadKind;
use crate::jail::{self, JailError};
use crate::kvm::{KvmError, Vm};
use crate::memory::{self, CurrentMemory, MemoryError};
use crate::vcpus::{RunState, VcpuError, Vcpus};
use crate::virtio::console::ConsoleLog;
use crate::virtio::thread::DeviceThread;

use devices::Devices;
use stopwatch::Stopwatch;

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
    /// When this descriptor is closed KVM disconnects all interrupts, even if the vCPUs still run.
    pub vm: Vm,
}

/// Enters the jail, assembles the machine and starts it. The calling thread is the process's only
/// one.
pub fn start(config: &MachineConfig, fds: Vec<OwnedFd>) -> Result<Machine, MachineError> {
    let mut stopwatch = Stopwatch::start();
    let mut fds = PassedFds::new(fds);
    config::validate(config)?;

    let proc_self_fd = enter_jail(config)?;
    let jail_ns = stopwatch.lap();

    let memory = memory::map(config.memory_mib)?;
    let vm = Vm::new(fds.take(config.kvm)?, Arc::clone(&memory))?;
    let current = CurrentMemory::new(Arc::clone(&memory));
    let console =
        ConsoleLog::new(fds.take(config.console)?.into()).map_err(devices::failed("console"))?;
    let console = Arc::new(Mutex::new(console));
    let devices = Devices::create(config, &mut fds, &current, &console, proc_self_fd)?;
    let slots = devices.slots.len();
    let cmdline = config::cmdline(config, slots);
    let bus = Bus::new(&vm, &devices.slots, console)?;
    let machine_ns = stopwatch.lap();

    let (mut kernel, mut initramfs) = (
        fds.take(config.kernel)?.into(),
        fds.take(config.initramfs)?.into(),
    );
    let entry = boot::load(&memory, &mut kernel, &mut initramfs, &cmdline)?;
    mptable::write(&memory, config.max_vcpus, slots).map_err(RegisterError::Memory)?;
    registers::write_tables(&memory)?;
    let kernel_ns = stopwatch.lap();

    let state = RunState::new(bus).map_err(MachineError::Thread)?;
    for worker in devices.workers {
        let state = Arc::clone(&state);
        worker.spawn(move |reason| state.fail(reason))?;
    }
    let counts = (config.boot_vcpus, config.max_vcpus);
    let vcpus = Vcpus::start(&vm, state, counts, entry)?;
    main_thread_kind(config).apply()?;
    let hotplug = HotplugMemory::new(config.memory_mib, config.max_memory_mib, vm.address_bits());
    Ok(Machine {
        main_devices: devices.main,
        vcpus,
        memory: MemorySize::new(config.memory_mib, hotplug, current, devices.balloon),
        nets: devices.nets,
        disks: devices.disks,
        times: StartTimes {
            jail_ns,
            machine_ns,
            kernel_ns,
            threads_ns: stopwatch.lap(),
            restored: false,
        },
        vm,
    })
}

/// Enters the jail of a machine. Returns /proc/self/fd, which the file server needs and the jail
/// lacks.
pub fn enter_jail(config: &MachineConfig) -> Result<File, JailError> {
    jail::enter_file_server(&config.shared_dir, config.parent)
}

/// The main thread may create vCPUs only if the machine can have more than it boots with.
fn main_thread_kind(config: &MachineConfig) -> ThreadKind {
    match config.boot_vcpus < config.max_vcpus {
        true => ThreadKind::MainWithCpuHotplug,
        false => ThreadKind::Main,
    }
}
