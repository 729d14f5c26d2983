//! The guest's MMIO and port I/O: virtio-mmio slots, into which devices are plugged, and the serial
//! port.

mod slots;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::kvm::{KvmError, Vm};
use crate::virtio::console::ConsoleLog;
use crate::virtio::device::VirtioDevice;
use crate::virtio::empty::Empty;
use crate::virtio::fs::{CurrentVersions, NOTIFY_PORT, VERSION_PORT, VERSION_PORTS};
use crate::virtio::mmio::MmioTransport;
use crate::virtio::slot::Slot;
use crate::virtio::spec::device_id;
use crate::virtio::spec::mmio::QUEUE_NOTIFY;
use crate::virtio::state::{StateError, TransportState};

pub use slots::{FixedSlot, SlotAddress};

/// The ports of a PC's first serial port, which has eight registers.
const SERIAL: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;

/// A device could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("there is no device slot {0}")]
    NoSlot(usize),
    #[error("cannot create a device's queues")]
    Queues(#[from] virtio_queue::Error),
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// The state of a slot could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[error("device slot {number}")]
pub struct SlotError {
    number: usize,
    #[source]
    source: StateError,
}

impl SlotError {
    /// The slot's number.
    pub fn number(&self) -> usize {
        self.number
    }
}

pub struct Bus {
    /// In the order of their numbers.
    slots: Vec<Mutex<MmioSlot>>,
    serial: Mutex<Serial<NoInterrupt, NoEvents, EarlyConsole>>,
    files: FilePorts,
}

/// The ports of the shared files.
#[derive(Clone)]
pub struct FilePorts {
    pub slot: Arc<Slot>,
    pub versions: CurrentVersions,
}

struct MmioSlot {
    transport: MmioTransport,
    address: SlotAddress,
    /// Whether KVM knows the doorbells and the interrupt. They stay connected after an unplug.
    is_connected: bool,
}

impl Bus {
    /// A bus with these slots, numbered in their order, and a serial port, to which the kernel
    /// prints before it finds its console, for example when it panics early.
    pub fn new(
        vm: &Vm,
        slots: &[Arc<Slot>],
        files: FilePorts,
        early_console: Arc<Mutex<ConsoleLog>>,
    ) -> Result<Self, BusError> {
        let slots = (0..)
            .zip(slots)
            .map(|(number, slot)| Ok(Mutex::new(MmioSlot::new(vm, number, slot)?)));
        Ok(Self {
            slots: slots.collect::<Result<_, BusError>>()?,
            serial: Mutex::new(Serial::new(NoInterrupt, EarlyConsole(early_console))),
            files,
        })
    }

    /// Plugs a device into an empty slot. The guest is not notified.
    pub fn plug(
        &self,
        vm: &Vm,
        number: usize,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<Slot>, BusError> {
        let mut slot = self.slot(number)?;
        slot.connect(vm)?;
        slot.transport.replace(device)?;
        Ok(Arc::clone(slot.transport.slot()))
    }

    /// Empties a slot. The next device has queues of these sizes.
    pub fn unplug(&self, number: usize, queue_sizes: &'static [u16]) -> Result<(), BusError> {
        let mut slot = self.slot(number)?;
        Ok(slot.transport.replace(Box::new(Empty(queue_sizes)))?)
    }

    /// Calls `write` with the state of every slot, by number, while no device is called: none
    /// changes the guest's memory. The guest must not run.
    pub fn save<T>(&self, write: impl FnOnce(Vec<TransportState>) -> T) -> Result<T, SlotError> {
        let slots: Vec<_> = self.slots.iter().map(lock).collect();
        let _held: Vec<_> = slots.iter().map(|it| it.transport.slot().hold()).collect();
        let states = slots.iter().enumerate().map(|(number, slot)| {
            let saved = slot.transport.save();
            saved.map_err(|source| SlotError { number, source })
        });
        let states = states.collect::<Result<_, _>>()?;
        Ok(write(states))
    }

    /// Gives every slot its state. The guest has not run yet.
    pub fn restore(&self, states: &[TransportState]) -> Result<(), SlotError> {
        for (number, (slot, state)) in self.slots.iter().zip(states).enumerate() {
            let restored = lock(slot).transport.restore(state);
            restored.map_err(|source| SlotError { number, source })?;
        }
        Ok(())
    }

    /// Restores the device of the shared files, if that was postponed.
    pub fn restore_files(&self) -> Result<(), SlotError> {
        let restored = self.files.slot.restore_postponed();
        let number = FixedSlot::ALL.len();
        restored.map_err(|source| SlotError { number, source })
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    fn slot(&self, number: usize) -> Result<MutexGuard<'_, MmioSlot>, BusError> {
        let slot = self.slots.get(number).ok_or(BusError::NoSlot(number))?;
        Ok(lock(slot))
    }

    /// Handles the guest's read of an address that is not memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((slot, offset)) => lock(slot).transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Handles the guest's write to an address that is not memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.find(address) else {
            return;
        };
        if let (QUEUE_NOTIFY, Ok(queue)) = (offset, <[u8; 4]>::try_from(data)) {
            // Other vCPUs use the slot while this one waits.
            let device = Arc::clone(lock(slot).transport.slot());
            notify(&device, queue);
        } else {
            lock(slot).transport.write(offset, data);
        }
    }

    /// Handles the guest's read of an I/O port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (true, [byte]) = (SERIAL.contains(&port), &mut *data) {
            *byte = lock(&self.serial).read((port - SERIAL.start()) as u8);
        }
        let version = port.checked_sub(VERSION_PORT);
        if let (Some(version @ ..VERSION_PORTS), Ok(data)) =
            (version, <&mut [u8; 4]>::try_from(data))
        {
            *data = self.files.versions.read(version).to_le_bytes();
        }
    }

    /// Handles the guest's write to an I/O port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        if let (true, &[byte]) = (SERIAL.contains(&port), data) {
            // A log that cannot be written must not stop the guest.
            let _ = lock(&self.serial).write((port - SERIAL.start()) as u8, byte);
        }
        if let (NOTIFY_PORT, Ok(queue)) = (port, <[u8; 4]>::try_from(data)) {
            notify(&self.files.slot, queue);
        }
    }

    fn find(&self, address: u64) -> Option<(&Mutex<MmioSlot>, u64)> {
        let (number, offset) = SlotAddress::find(address)?;
        Some((self.slots.get(number)?, offset))
    }
}

impl MmioSlot {
    /// The registers of `slot`, whose device is connected to KVM unless the slot is empty.
    fn new(vm: &Vm, number: usize, slot: &Arc<Slot>) -> Result<Self, BusError> {
        let address = SlotAddress::of(number).ok_or(BusError::NoSlot(number))?;
        let mut this = Self {
            transport: MmioTransport::new(Arc::clone(slot))?,
            address,
            is_connected: false,
        };
        if slot.with_device(|device| device.info().id) != device_id::NONE {
            this.connect(vm)?;
        }
        Ok(this)
    }

    /// Connects the slot's doorbells and its interrupt to KVM, once.
    fn connect(&mut self, vm: &Vm) -> Result<(), KvmError> {
        if self.is_connected {
            return Ok(());
        }
        let SlotAddress { window, interrupt } = self.address;
        let slot = self.transport.slot();
        vm.connect_irqfd(slot.interrupt().irqfd(), interrupt)?;
        for (queue, doorbell) in slot.doorbells() {
            vm.connect_ioeventfd(doorbell, window + QUEUE_NOTIFY, queue as u32)?;
        }
        self.is_connected = true;
        Ok(())
    }
}

/// Notifies a device of requests in a queue. The vCPU waits for the answers if the queue is the
/// awaited one.
fn notify(device: &Slot, queue: [u8; 4]) {
    if let Some(round) = device.notify(u32::from_le_bytes(queue) as usize) {
        round.wait();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guest polls the serial port.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

/// Appends the serial port's output to the console's log.
struct EarlyConsole(Arc<Mutex<ConsoleLog>>);

impl std::io::Write for EarlyConsole {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
