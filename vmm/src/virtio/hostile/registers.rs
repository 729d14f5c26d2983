//! The registers of a slot in any order, while devices come and go.

use std::sync::{Arc, Mutex};

use rvm_fuzz_input::Decisions;
use rvm_protocol::vmm::{DiskConfig, Rate};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{CurrentMemory, GuestMemory};
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::{Console, ConsoleLog};
use crate::virtio::device::VirtioDevice;
use crate::virtio::empty::Empty;
use crate::virtio::fake_driver::zeroed_memory;
use crate::virtio::mem::{self, Mem};
use crate::virtio::mmio::{MmioTransport, WINDOW};
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::spec::{mmio as reg, status};
use crate::virtio::state::TransportState;
use crate::virtio::thread::DeviceThread;

/// The registers that a driver writes, without the one that notifies: the bus reads that.
const WRITTEN: [u64; 15] = [
    reg::DEVICE_FEATURES_SEL,
    reg::DRIVER_FEATURES,
    reg::DRIVER_FEATURES_SEL,
    reg::QUEUE_SEL,
    reg::QUEUE_NUM,
    reg::QUEUE_READY,
    reg::INTERRUPT_ACK,
    reg::STATUS,
    reg::QUEUE_DESC_LOW,
    reg::QUEUE_DESC_HIGH,
    reg::QUEUE_DRIVER_LOW,
    reg::QUEUE_DRIVER_HIGH,
    reg::QUEUE_DEVICE_LOW,
    reg::QUEUE_DEVICE_HIGH,
    reg::SHM_SEL,
];

/// The devices of a slot, which [`make`] makes.
const DEVICES: u8 = 6;

/// A slot, its thread and its memory.
struct Machine {
    device: u8,
    memory: Arc<GuestMemory>,
    thread: DeviceThread,
    transport: MmioTransport,
}

impl Machine {
    /// A machine whose slot is empty, and may have this device.
    fn new(device: u8) -> Self {
        let memory = zeroed_memory(2);
        let mut thread = DeviceThread::new().unwrap();
        let empty = Box::new(Empty(make(device).info().queue_sizes));
        let slot = thread.add(empty, CurrentMemory::new(Arc::clone(&memory)));
        Self {
            device,
            memory,
            thread,
            transport: MmioTransport::new(slot.unwrap()).unwrap(),
        }
    }

    fn plug(&mut self) {
        self.transport.replace(make(self.device)).unwrap();
    }

    fn unplug(&mut self) {
        let empty = Box::new(Empty(make(self.device).info().queue_sizes));
        self.transport.replace(empty).unwrap();
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// What a driver does that keeps to the specification.
    fn start(&mut self) {
        self.set(reg::STATUS, 0);
        self.set(reg::DRIVER_FEATURES_SEL, 1);
        self.set(reg::DRIVER_FEATURES, 1);
        self.set(reg::STATUS, status::FEATURES_OK);
        for queue in 0..3 {
            let start = (queue + 1) * 0x4000;
            self.set(reg::QUEUE_SEL, queue);
            self.set(reg::QUEUE_NUM, 16);
            self.set(reg::QUEUE_DESC_LOW, start);
            self.set(reg::QUEUE_DRIVER_LOW, start + 0x1000);
            self.set(reg::QUEUE_DEVICE_LOW, start + 0x2000);
            self.set(reg::QUEUE_READY, 1);
        }
        self.set(reg::STATUS, status::FEATURES_OK | status::DRIVER_OK);
    }

    fn perform(&mut self, decisions: &mut Decisions<'_>) {
        match decisions.choose(20) {
            0..5 => {
                let register = WRITTEN[usize::from(decisions.choose(WRITTEN.len() as u8))];
                let value = number(decisions);
                self.set(register, value);
            }
            5 => {
                let (offset, data) = (u64::from(decisions.u16()) % WINDOW, decisions.words());
                self.transport.write(offset, &data);
            }
            6 => {
                let offset = u64::from(decisions.u16()) % WINDOW;
                let mut data = vec![0; decisions.choose(9).into()];
                self.transport.read(offset, &mut data);
            }
            7 => self.plug(),
            8 => self.unplug(),
            9 | 10 => self.start(),
            11..14 => {
                let _ = self.transport.slot().notify(decisions.choose(4).into());
            }
            14 | 15 => self.thread.handle_pending().unwrap(),
            16..19 => {
                let address = GuestAddress(u64::from(decisions.u16()) * 2);
                let _ = self.memory.write_slice(&decisions.words(), address);
            }
            _ => self.go_on_elsewhere(),
        }
    }

    /// Saves the slot and goes on in another machine, from its state.
    fn go_on_elsewhere(&mut self) {
        let Ok(state) = self.transport.save() else {
            return;
        };
        let mut other = Self::new(self.device);
        other.plug();
        let restored = other.transport.restore(&state);
        // Its memory is that of a machine that has done nothing, and a device may mind.
        if restored.is_ok() {
            *self = other;
        }
    }
}

/// Mostly what one of the registers takes.
fn number(decisions: &mut Decisions<'_>) -> u32 {
    match decisions.choose(8) {
        0..4 => decisions.choose(16).into(),
        4 => 1 << decisions.choose(32),
        5 | 6 => u32::from(decisions.choose(64)) << 12,
        _ => decisions.u32(),
    }
}

fn make(device: u8) -> Box<dyn VirtioDevice> {
    match device {
        0 => Box::new(Rng),
        1 => Box::new(Balloon::default()),
        2 => Box::new(Console::new(Arc::new(Mutex::new(
            ConsoleLog::new(tempfile::tempfile().unwrap()).unwrap(),
        )))),
        3 => Box::new(disk()),
        4 => Box::new(pluggable()),
        _ => Box::new(layer()),
    }
}

/// Memory, the first half of which can be plugged.
fn pluggable() -> Mem {
    let region = 2 * mem::BLOCK..10 * mem::BLOCK;
    let sizes = mem::Sizes::default();
    sizes.set_usable(4 * mem::BLOCK);
    sizes.request(3 * mem::BLOCK);
    Mem::new(region, sizes)
}

fn layer() -> Pmem {
    Pmem::new(tempfile::tempfile().unwrap(), 0, &(0..2 << 20))
}

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let config = DiskConfig {
        read_only: false,
        serial: String::new(),
        block_size: 512,
        layer: false,
    };
    Block::new(file, &config, &Rate::default()).unwrap()
}

/// Plays with the registers of a slot as the bytes decide, the first of which chooses the device.
pub fn registers(input: &[u8]) {
    let mut decisions = Decisions(input);
    let mut machine = Machine::new(decisions.choose(DEVICES));
    machine.plug();
    while !decisions.are_over() {
        machine.perform(&mut decisions);
    }
}

/// Restores a slot with each of the devices from a state that may be damaged. Refused or not, it
/// answers whatever comes.
pub fn restore(state: &TransportState) {
    for device in 0..DEVICES {
        let mut machine = Machine::new(device);
        machine.plug();
        let _ = machine.transport.restore(state);
        let _ = machine.transport.slot().notify(0);
        machine.thread.handle_pending().unwrap();
        let _ = machine.transport.save();
        machine.start();
    }
}
