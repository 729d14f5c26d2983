//! Puts a machine together and starts it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use rvm_protocol::vmm::{Disk, MAX_NETS, MachineConfig, StartTimes};
use rvm_protocol::{MEMORY_SLOT, SHARED_TAG};

use crate::arch::x86_64::registers::RegisterError;
use crate::arch::x86_64::{DEVICE_INTERRUPTS, MAX_VCPUS, layout, mptable, registers};
use crate::boot::{self, BootError};
use crate::bus::Bus;
use crate::cpus::{CpuError, Cpus};
use crate::handed::{HandedFds, MissingFd};
use crate::hot_memory::HotMemory;
use crate::jail::filter::ThreadKind;
use crate::jail::{self, Caps, JailError, Root};
use crate::kvm::vcpu::Shared;
use crate::kvm::{KvmError, Vm};
use crate::memory::{self, CurrentMemory, MemoryError};
use crate::nets::NetSlots;
use crate::size::MemorySize;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block::Block;
use crate::virtio::console::{Console, ConsoleLog};
use crate::virtio::device::VirtioDevice;
use crate::virtio::empty::Empty;
use crate::virtio::fs::{self, Fs};
use crate::virtio::mem::spec as mem;
use crate::virtio::mmio::{MmioTransport, WINDOW};
use crate::virtio::net;
use crate::virtio::rng::Rng;
use crate::virtio::spec::device_id;
use crate::virtio::spec::mmio::QUEUE_NOTIFY;
use crate::virtio::thread::{DeviceThread, Slot};
use crate::virtio::vsock::Vsock;

/// A machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration contradicts itself.
    #[error("machine configuration: {0}")]
    Config(String),
    /// A descriptor.
    #[error(transparent)]
    Fd(#[from] MissingFd),
    /// The jail.
    #[error("cannot enter the jail")]
    Jail(#[from] JailError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device.
    #[error("cannot make the {device} device")]
    Device {
        /// Which one.
        device: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A device's queues.
    #[error("cannot make a device's queues")]
    Queues(#[from] virtio_queue::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel and what goes with it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The boot CPU's tables.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// The CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// A thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

fn device_failed(device: &str) -> impl FnOnce(io::Error) -> MachineError {
    let device = device.to_owned();
    move |source| MachineError::Device { device, source }
}

/// A running machine, as its main thread holds it.
pub struct Machine {
    /// The devices that work on the main thread.
    pub main_devices: DeviceThread,
    /// The CPUs.
    pub cpus: Cpus,
    /// The memory.
    pub memory: MemorySize,
    /// Where the time went.
    pub times: StartTimes,
    /// The network cards.
    pub nets: NetSlots,
    /// KVM lets go of all interrupts when the machine's descriptor is closed, though the CPUs go on.
    pub vm: Vm,
}

/// Enters the jail, makes the machine and starts it. The calling thread is the process's only one.
pub fn start(config: &MachineConfig, fds: Vec<OwnedFd>) -> Result<Machine, MachineError> {
    let mut clock = Stopwatch::start();
    let mut fds = HandedFds::new(fds);
    check(config)?;

    let proc_self_fd = enter_jail(config)?;
    let jail_ns = clock.lap();

    let memory = memory::map(config.memory_mib)?;
    let vm = Vm::new(fds.take(config.kvm)?, Arc::clone(&memory))?;
    let current = CurrentMemory::new(Arc::clone(&memory));
    let console =
        ConsoleLog::new(fds.take(config.console)?.into()).map_err(device_failed("console"))?;
    let console = Arc::new(Mutex::new(console));
    let devices = make_devices(config, &mut fds, &current, &console, proc_self_fd)?;
    let (transports, nets) = connect_devices(&vm, &devices.slots, config)?;
    let cmdline = cmdline(config, devices.slots.len());
    let machine_ns = clock.lap();

    let (mut kernel, mut initramfs) = (
        fds.take(config.kernel)?.into(),
        fds.take(config.initramfs)?.into(),
    );
    let entry = boot::load(&memory, &mut kernel, &mut initramfs, &cmdline)?;
    mptable::write(&memory, config.max_vcpus).map_err(RegisterError::Memory)?;
    registers::write_tables(&memory)?;
    let kernel_ns = clock.lap();

    let cpus = Shared::new(Bus::new(transports, console)).map_err(MachineError::Thread)?;
    for (thread, kind) in devices.threads {
        spawn_devices(thread, kind)?;
    }
    let counts = (config.boot_vcpus, config.max_vcpus);
    let cpus = Cpus::start(&vm, cpus, counts, entry)?;
    main_kind(config).apply()?;
    let memory = memory_size(config, &vm, current, devices.balloon)?;
    Ok(Machine {
        main_devices: devices.main,
        cpus,
        memory,
        times: StartTimes {
            jail_ns,
            machine_ns,
            kernel_ns,
            threads_ns: clock.lap(),
        },
        nets,
        vm,
    })
}

/// Enters the jail of a machine. Returns what its file server needs from outside.
pub fn enter_jail(config: &MachineConfig) -> Result<File, JailError> {
    let proc_self_fd = jail::own_descriptors()?;
    let root = Root::Directory(config.shared_dir.clone());
    jail::enter(&root, Caps::FileServer, config.parent)?;
    Ok(proc_self_fd)
}

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let wrong = |what: String| Err(MachineError::Config(what));
    if config.boot_vcpus == 0 || config.boot_vcpus > config.max_vcpus {
        return wrong(format!(
            "{} of {} vCPUs at boot",
            config.boot_vcpus, config.max_vcpus
        ));
    }
    if config.max_vcpus > MAX_VCPUS {
        return wrong(format!(
            "{} vCPUs; at most {MAX_VCPUS} are possible",
            config.max_vcpus
        ));
    }
    if config.memory_mib > config.max_memory_mib {
        return wrong(format!(
            "{} of at most {} MiB of memory",
            config.memory_mib, config.max_memory_mib
        ));
    }
    if config.nets.len() + config.spare_nets > MAX_NETS {
        return wrong(format!(
            "{} network cards and room for {} more; at most {MAX_NETS} are possible",
            config.nets.len(),
            config.spare_nets
        ));
    }
    // 1 TiB, what the boot CPU's page tables and common hosts can address with ease.
    if !(1..=1 << 20).contains(&config.memory_mib) {
        return wrong(format!("{} MiB of memory", config.memory_mib));
    }
    Ok(())
}

/// A machine whose CPUs are all there needs no calls to make more.
fn main_kind(config: &MachineConfig) -> ThreadKind {
    match config.boot_vcpus < config.max_vcpus {
        true => ThreadKind::MainAndMoreCpus,
        false => ThreadKind::Main,
    }
}

fn memory_size(
    config: &MachineConfig,
    vm: &Vm,
    memory: CurrentMemory,
    balloon: (balloon::Target, Arc<Slot>),
) -> Result<MemorySize, MachineError> {
    let (boot, max) = (config.memory_mib, config.max_memory_mib);
    let hot = HotMemory::new(boot, max, vm.address_bits());
    let place = windows().nth(MEMORY_SLOT);
    let place = place.ok_or_else(|| MachineError::Config("no memory slot".to_owned()))?;
    Ok(MemorySize::new(boot, hot, memory, balloon, place))
}

/// The devices of a machine and the threads they work on.
struct Devices {
    main: DeviceThread,
    threads: Vec<(DeviceThread, ThreadKind)>,
    /// In the order of their windows and interrupts.
    slots: Vec<Arc<Slot>>,
    balloon: (balloon::Target, Arc<Slot>),
}

fn make_devices(
    config: &MachineConfig,
    fds: &mut HandedFds,
    memory: &CurrentMemory,
    console: &Arc<Mutex<ConsoleLog>>,
    proc_self_fd: File,
) -> Result<Devices, MachineError> {
    let mut main = new_thread("main")?;
    let mut threads = Vec::new();
    let mut slots = Vec::new();

    let target = balloon::Target::default();
    for device in [
        Box::new(Console::new(Arc::clone(console))) as Box<dyn VirtioDevice>,
        Box::new(vsock(config, fds)?),
        Box::new(Rng),
        Box::new(Balloon::new(target.clone())),
    ] {
        slots.push(add(&mut main, device, memory)?);
    }
    // The balloon was the last.
    let balloon = (target, Arc::clone(&slots[slots.len() - 1]));
    debug_assert_eq!(slots.len(), MEMORY_SLOT, "the guest looks for it there");
    slots.push(add(&mut main, Box::new(Empty(mem::QUEUE_SIZES)), memory)?);

    let mut alone = |name: &str, kind, device: Box<dyn VirtioDevice>| {
        let mut thread = new_thread(name)?;
        slots.push(add(&mut thread, device, memory)?);
        threads.push((thread, kind));
        Ok::<(), MachineError>(())
    };
    alone(
        "fs",
        ThreadKind::Files,
        Box::new(shared_files(proc_self_fd)?),
    )?;
    for (index, disk) in config.disks.iter().enumerate() {
        let name = format!("block{index}");
        alone(&name, ThreadKind::Disk, Box::new(block(disk, fds)?))?;
    }
    for (index, net) in config.nets.iter().enumerate() {
        let name = format!("net{index}");
        let tap = File::from(fds.take(net.tap)?);
        alone(
            &name,
            ThreadKind::Network,
            Box::new(net::Net::new(tap, net.mac)),
        )?;
    }
    // A card that comes later shares this thread: it can make no other then.
    for _ in 0..config.spare_nets {
        slots.push(add(&mut main, Box::new(Empty(net::QUEUE_SIZES)), memory)?);
    }
    Ok(Devices {
        main,
        threads,
        slots,
        balloon,
    })
}

fn new_thread(name: &str) -> Result<DeviceThread, MachineError> {
    DeviceThread::new(name).map_err(MachineError::Thread)
}

fn add(
    thread: &mut DeviceThread,
    device: Box<dyn VirtioDevice>,
    memory: &CurrentMemory,
) -> Result<Arc<Slot>, MachineError> {
    thread
        .add(device, memory.clone())
        .map_err(device_failed("virtio"))
}

fn vsock(config: &MachineConfig, fds: &mut HandedFds) -> Result<Vsock, MachineError> {
    let listeners = config
        .vsock
        .iter()
        .map(|port| Ok((port.port, UnixListener::from(fds.take(port.listener)?))))
        .collect::<Result<_, MissingFd>>()?;
    Vsock::new(listeners).map_err(device_failed("vsock"))
}

fn shared_files(proc_self_fd: File) -> Result<Fs, MachineError> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let max_fds = limit.current.unwrap_or(u64::MAX);
    Fs::new(
        fs::Shared {
            proc_self_fd,
            max_fds,
        },
        SHARED_TAG,
    )
    .map_err(device_failed("fs"))
}

fn block(disk: &Disk, fds: &mut HandedFds) -> Result<Block, MachineError> {
    Block::new(fds.take(disk.file)?.into(), disk.read_only, &disk.serial)
        .map_err(device_failed("block"))
}

/// Gives each device its window, and all but those that come later their interrupt and bells.
fn connect_devices(
    vm: &Vm,
    slots: &[Arc<Slot>],
    config: &MachineConfig,
) -> Result<(Vec<MmioTransport>, NetSlots), MachineError> {
    let places: Vec<Place> = windows().take(slots.len()).collect();
    if places.len() < slots.len() {
        return Err(MachineError::Config(format!(
            "{} devices are too many",
            slots.len()
        )));
    }
    for (&place, slot) in places.iter().zip(slots) {
        if slot.device(|device| device.info().id) != device_id::NONE {
            connect(vm, slot, place)?;
        }
    }
    let transports = slots
        .iter()
        .map(|slot| Ok(MmioTransport::new(Arc::clone(slot))?))
        .collect::<Result<_, MachineError>>()?;
    let macs = config.nets.iter().map(|net| net.mac);
    let first = slots.len() - config.spare_nets - config.nets.len();
    let nets = NetSlots::new(first, macs, &places);
    Ok((transports, nets))
}

/// Connects the device at a place to its interrupt and its bells.
pub fn connect(vm: &Vm, slot: &Slot, (window, interrupt): Place) -> Result<(), MachineError> {
    vm.connect_interrupt(slot.interrupt.line(), interrupt)?;
    for (queue, bell) in (0..).zip(slot.bells()) {
        vm.connect_bell(bell, window + QUEUE_NOTIFY, queue)?;
    }
    Ok(())
}

/// A place for a device: its window's address, and its interrupt.
pub type Place = (u64, u32);

/// The places for devices.
fn windows() -> impl Iterator<Item = Place> + Clone {
    (layout::MMIO_START..)
        .step_by(WINDOW as usize)
        .zip(DEVICE_INTERRUPTS)
}

fn cmdline(config: &MachineConfig, devices: usize) -> String {
    let mut line = config.cmdline.clone();
    if config.boot_vcpus < config.max_vcpus {
        line += &format!(" maxcpus={}", config.boot_vcpus);
    }
    for (window, interrupt) in windows().take(devices) {
        line += &format!(" virtio_mmio.device={WINDOW:#x}@{window:#x}:{interrupt}");
    }
    line
}

fn spawn_devices(thread: DeviceThread, kind: ThreadKind) -> Result<(), MachineError> {
    let name = thread.name().to_owned();
    let run = move || {
        if let Err(error) = kind.apply() {
            return log::error!("{}", crate::report::chain(&error));
        }
        while let Ok(()) = thread.work(true) {}
    };
    thread::Builder::new()
        .name(name)
        .stack_size(STACK)
        .spawn(run)
        .map_err(MachineError::Thread)?;
    Ok(())
}

/// The stack of every thread. virtiofsd's deepest calls and a packet's copy need a fraction of it.
pub const STACK: usize = 256 * 1024;

struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the last lap.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let elapsed = now.duration_since(std::mem::replace(&mut self.0, now));
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }
}
