//! Creates the devices of a machine, in the order of the table of slots (`bus/slots.rs`), and their
//! threads.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use rvm_protocol::SHARED_TAG;
use rvm_protocol::vmm::{DISK_SLOT, FdIndex, MachineConfig, Net as NetConfig};
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::saved::{Hardware, MachineState, SavedError};
use crate::bus::{FilePorts, FixedSlot};
use crate::fds::{MissingFd, PassedFds};
use crate::hotplug::{self, DiskSlots, Mac, MappedDisks, NetSlots};
use crate::jail::OwnDescriptors;
use crate::jail::filter::ThreadKind;
use crate::kvm::Vm;
use crate::logging::error_chain;
use crate::memory::CurrentMemory;
use crate::threads;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block;
use crate::virtio::console::{Console, ConsoleLog};
use crate::virtio::device::VirtioDevice;
use crate::virtio::empty::Empty;
use crate::virtio::fs::{Fs, RemovedFiles, ServerResources};
use crate::virtio::mem::{self, Mem};
use crate::virtio::net::{self, Net};
use crate::virtio::rng::Rng;
use crate::virtio::slot::Slot;
use crate::virtio::thread::DeviceThread;
use crate::virtio::vsock::{HeldRequest, Vsock};

/// The devices of a machine and the threads that they work on.
pub(super) struct Devices {
    pub(super) main: DeviceThread,
    pub(super) workers: Vec<WorkerThread>,
    /// In the order of their numbers.
    pub(super) slots: Vec<Arc<Slot>>,
    pub(super) balloon: hotplug::Balloon,
    /// The slot of the memory that was plugged in before the machine was saved.
    pub(super) plugged: Option<Arc<Slot>>,
    pub(super) nets: NetSlots,
    pub(super) disks: DiskSlots,
    pub(super) removed: Arc<RemovedFiles>,
    pub(super) files: FilePorts,
}

/// A thread for devices that may block.
pub(super) struct WorkerThread {
    name: String,
    kind: ThreadKind,
    devices: DeviceThread,
}

impl Devices {
    /// Creates the devices and takes their descriptors.
    pub(super) fn create(
        config: &MachineConfig,
        fds: &mut PassedFds,
        (hardware, console): (&mut Hardware, &Arc<Mutex<ConsoleLog>>),
        role: &Role,
        own: OwnDescriptors,
    ) -> Result<Self, MachineError> {
        let mut slots = Slots {
            memory: &hardware.memory,
            main: DeviceThread::new().map_err(MachineError::Thread)?,
            workers: Vec::new(),
            slots: Vec::new(),
        };
        let target = balloon::Target::default();
        let has_grown = hardware.plugged.is_some();
        for slot in FixedSlot::ALL {
            slots.add(match slot {
                FixedSlot::Console => Box::new(Console::new(Arc::clone(console))),
                FixedSlot::Vsock => Box::new(vsock(config, fds, role)?),
                FixedSlot::Rng => Box::new(Rng),
                FixedSlot::Balloon => Box::new(Balloon::new(target.clone())),
                FixedSlot::Memory => pluggable(hardware.plugged.take()),
            })?;
        }
        let files = files(own)?;
        let removed = files.removed_files();
        removed.set(role.removed_files(fds)?);
        let files = slots.add_files(files)?;
        let mut disks = disk_slots(config, hardware);
        slots.add_disk_slots(config, fds, (&hardware.vm, &mut disks))?;
        let first_net = slots.slots.len();
        let cards = role.cards(config)?;
        for (index, card) in cards.iter().enumerate() {
            // Cards that are plugged in later work on the main thread: its filter forbids new
            // threads.
            let Some(net) = card else {
                slots.add(Box::new(Empty(net::QUEUE_SIZES)))?;
                continue;
            };
            let name = format!("net{index}");
            let card = Net::new(File::from(fds.take(net.tap)?), net.mac, &config.rates);
            let card = card.map_err(failed("net"))?;
            slots.add_worker(&name, ThreadKind::Network, Box::new(card))?;
        }
        let cards = cards.into_iter().map(|card| card.map(|net| net.mac));
        Ok(Self {
            balloon: hotplug::Balloon {
                target,
                slot: Arc::clone(&slots.slots[FixedSlot::Balloon as usize]),
            },
            plugged: has_grown.then(|| Arc::clone(&slots.slots[FixedSlot::Memory as usize])),
            nets: NetSlots::new(first_net, cards.collect(), config.rates),
            disks,
            removed,
            files,
            main: slots.main,
            workers: slots.workers,
            slots: slots.slots,
        })
    }
}

/// What a machine is made for, which its devices depend on.
pub(super) enum Role {
    /// To run a guest that has no streams yet.
    Run,
    /// To become a template. The guest's word that it is ready is noted here.
    Template(Arc<HeldRequest>),
    /// To go on from a checkpoint.
    GoOn {
        /// The cards by their slots.
        cards: Vec<Option<Mac>>,
        /// See [`super::CheckpointFiles`].
        removed: FdIndex,
        /// Has the guest's streams reset that no host program has claimed.
        drop_streams: Arc<EventFd>,
    },
}

impl Role {
    /// That of a machine with this state, if it has one.
    pub(super) fn of(
        config: &MachineConfig,
        saved: Option<&MachineState>,
    ) -> Result<Self, MachineError> {
        let (Some(saved), Some(files)) = (saved, &config.checkpoint) else {
            return Ok(Self::Run);
        };
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self::GoOn {
            cards: saved.cards.clone(),
            removed: files.removed,
            drop_streams: Arc::new(event.map_err(failed("vsock"))?),
        })
    }

    /// See [`Self::GoOn`].
    pub(super) fn drop_streams(&self) -> Option<Arc<EventFd>> {
        match self {
            Self::GoOn { drop_streams, .. } => Some(Arc::clone(drop_streams)),
            Self::Run | Self::Template(_) => None,
        }
    }

    fn removed_files(&self, fds: &mut PassedFds) -> Result<Option<File>, MissingFd> {
        match self {
            Self::GoOn { removed, .. } => Ok(Some(fds.take(*removed)?.into())),
            Self::Run | Self::Template(_) => Ok(None),
        }
    }

    /// The cards by their slots.
    fn cards<'a>(
        &self,
        config: &'a MachineConfig,
    ) -> Result<Vec<Option<&'a NetConfig>>, SavedError> {
        let Self::GoOn { cards: saved, .. } = self else {
            let empty = std::iter::repeat_n(None, config.spare_nets);
            return Ok(config.nets.iter().map(Some).chain(empty).collect());
        };
        let given = |mac: &Mac| config.nets.iter().find(|net| net.mac == *mac);
        let cards = saved.iter().map(|mac| match mac {
            Some(mac) => given(mac).ok_or(SavedError::Cards).map(Some),
            None => Ok(None),
        });
        cards.collect()
    }
}

/// The slots of a machine, to which devices are added one after the other.
struct Slots<'a> {
    memory: &'a CurrentMemory,
    main: DeviceThread,
    workers: Vec<WorkerThread>,
    slots: Vec<Arc<Slot>>,
}

impl Slots<'_> {
    /// Adds a device that works on the main thread.
    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let slot = self.main.add(device, self.memory.clone());
        self.slots.push(slot.map_err(failed("virtio"))?);
        Ok(())
    }

    /// Adds a device that works on a thread of its own.
    fn add_worker(
        &mut self,
        name: &str,
        kind: ThreadKind,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), MachineError> {
        self.add_worker_with(name, kind, vec![device])
    }

    /// Adds the shared files, with ports.
    fn add_files(&mut self, mut files: Fs) -> Result<FilePorts, MachineError> {
        let versions = files.offer_ports();
        let number = self.slots.len();
        self.add_worker("fs", ThreadKind::Files, Box::new(files))?;
        let slot = Arc::clone(&self.slots[number]);
        Ok(FilePorts { slot, versions })
    }

    /// Adds slots for disks, whose requests are executed on one thread: a thread cannot be made
    /// when a disk comes. Most machines have neither.
    fn add_disk_slots(
        &mut self,
        config: &MachineConfig,
        fds: &mut PassedFds,
        (vm, disks): (&Vm, &mut DiskSlots),
    ) -> Result<(), MachineError> {
        if config.spare_disks == 0 {
            return Ok(());
        }
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for slot in DISK_SLOT..DISK_SLOT + config.spare_disks {
            devices.push(match config.disks.iter().find(|disk| disk.slot == slot) {
                Some(placed) => {
                    let file = File::from(fds.take(placed.file)?);
                    disks.device((vm, self.memory), slot, file, &placed.disk)?
                }
                None => Box::new(Empty(block::QUEUE_SIZES)),
            });
        }
        self.add_worker_with("disks", ThreadKind::Disk, devices)
    }

    /// Adds devices that take turns on a thread of their own.
    fn add_worker_with(
        &mut self,
        name: &str,
        kind: ThreadKind,
        new: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<(), MachineError> {
        let mut devices = DeviceThread::new().map_err(MachineError::Thread)?;
        for device in new {
            let slot = devices.add(device, self.memory.clone());
            self.slots.push(slot.map_err(failed("virtio"))?);
        }
        self.workers.push(WorkerThread {
            name: name.to_owned(),
            kind,
            devices,
        });
        Ok(())
    }
}

impl WorkerThread {
    /// Starts the thread, which applies its filter first. `ended` receives the reason if it ends:
    /// no other thread can serve its devices.
    pub(super) fn spawn(
        self,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Result<(), MachineError> {
        let Self {
            name,
            kind,
            devices,
        } = self;
        let title = name.clone();
        let run = move || {
            let reason = match kind.apply() {
                Ok(()) => format!("cannot wait for events: {}", devices.run()),
                Err(error) => error_chain(&error),
            };
            ended(format!("the thread {title} has ended: {reason}"));
        };
        threads::spawn(name, run).map_err(MachineError::Thread)
    }
}

pub(super) fn failed(device: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Device { device, source }
}

fn disk_slots(config: &MachineConfig, hardware: &Hardware) -> DiskSlots {
    let mapped = config.map_layers.then(|| {
        let end = hardware.hotplug.region().end;
        MappedDisks::new(config.spare_disks, end, hardware.vm.address_bits())
    });
    DiskSlots::new(config.spare_disks, config.rates.disk, mapped)
}

fn vsock(config: &MachineConfig, fds: &mut PassedFds, role: &Role) -> Result<Vsock, MachineError> {
    let vsock = match role {
        Role::Run => Vsock::new(fds.take_listeners(&config.vsock)?),
        Role::Template(ready) => Vsock::of_template(Arc::clone(ready)),
        Role::GoOn { drop_streams, .. } => {
            Vsock::of_checkpoint(fds.take_listeners(&config.vsock)?, Arc::clone(drop_streams))
        }
    };
    vsock.map_err(failed("vsock"))
}

/// What is in the slot of memory that can be plugged: nothing until the machine grows.
fn pluggable(plugged: Option<Mem>) -> Box<dyn VirtioDevice> {
    match plugged {
        Some(device) => Box::new(device),
        None => Box::new(Empty(mem::QUEUE_SIZES)),
    }
}

fn files(own: OwnDescriptors) -> Result<Fs, MachineError> {
    let resources = ServerResources::new(own);
    Fs::new(resources, SHARED_TAG).map_err(failed("fs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_thread_that_ends_says_why() {
        let worker = WorkerThread {
            name: "fs".to_owned(),
            kind: ThreadKind::Files,
            devices: DeviceThread::broken().unwrap(),
        };
        let (ended, reason) = mpsc::channel();
        worker
            .spawn(move |reason| ended.send(reason).unwrap())
            .unwrap();
        let reason = reason.recv_timeout(Duration::from_secs(10)).unwrap();
        let words = "the thread fs has ended: cannot wait for events: Invalid argument";
        assert!(reason.starts_with(words), "{reason}");
    }
}
