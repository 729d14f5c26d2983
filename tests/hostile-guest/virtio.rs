//! The guest's virtio devices behind their MMIO registers, and queues in the guest's memory.

use crate::cpu::{fill, get16, get32, put16, put32, put64};

/// Registers of a slot, section 4.2.2 of the virtio specification.
pub mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    /// Descriptor table, available ring and used ring, each of two halves.
    pub const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
    pub const CONFIG: u64 = 0x100;
}

/// Device types, section 5.
pub mod device_id {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const RNG: u32 = 4;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
    pub const MEM: u32 = 24;
    pub const FS: u32 = 26;
}

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// DEVICE_NEEDS_RESET
pub const NEEDS_RESET: u32 = 64;

/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK.
const READY: [u32; 4] = [1, 3, 11, 15];

/// What the guest accepts of the upper half: version 1, and that the device is behind an IOMMU,
/// which no machine has. Of the lower half it accepts all but VIRTIO_F_EVENT_IDX.
const ACCEPTED: [u32; 2] = [!(1 << 29), 3];

/// "virt"
const MAGIC: u32 = 0x7472_6976;

/// The most slots of a machine.
const SLOTS: usize = 32;

/// The most queues of a device, and entries of a queue, that are used.
pub const QUEUES: u64 = 8;
pub const ENTRIES: u16 = 256;

/// The memory of the queues, of which each has as much.
const QUEUES_START: u64 = 0x40_0000;
const QUEUE_BYTES: u64 = 0x4000;

/// The memory of buffers: 32 MiB.
pub const BUFFERS: u64 = 0x100_0000;

/// A device.
#[derive(Clone, Copy, Default)]
pub struct Device {
    number: u64,
    pub window: u64,
}

/// The devices of the machine.
pub struct Devices {
    all: [Device; SLOTS],
    count: usize,
}

impl Devices {
    /// Those that the kernel's command line declares.
    pub fn new(command_line: &str) -> Self {
        let mut devices = Self {
            all: [Device::default(); SLOTS],
            count: 0,
        };
        for word in command_line.split(' ') {
            let window = word.strip_prefix("virtio_mmio.device=").and_then(window);
            if let Some(window) = window
                && devices.count < SLOTS
            {
                devices.all[devices.count] = Device {
                    number: devices.count as u64,
                    window,
                };
                devices.count += 1;
            }
        }
        devices
    }

    pub fn all(&self) -> &[Device] {
        &self.all[..self.count]
    }

    /// The device of this type, if the machine has one.
    pub fn find(&self, id: u32) -> Option<Device> {
        self.all().iter().copied().find(|device| device.id() == id)
    }
}

/// The address in `SIZE@ADDRESS:INTERRUPT`.
fn window(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("@0x")?;
    let (address, _) = rest.split_once(':')?;
    u64::from_str_radix(address, 16).ok()
}

impl Device {
    pub fn get(self, register: u64) -> u32 {
        get32(self.window + register)
    }

    pub fn put(self, register: u64, value: u32) {
        put32(self.window + register, value);
    }

    /// Its type; 0 for an empty slot.
    pub fn id(self) -> u32 {
        match self.get(reg::MAGIC) {
            MAGIC => self.get(reg::DEVICE_ID),
            _ => 0,
        }
    }

    /// Resets the device and accepts its features; the queues follow.
    pub fn begin(self) {
        self.put(reg::STATUS, 0);
        self.put(reg::STATUS, READY[0]);
        self.put(reg::STATUS, READY[1]);
        for (half, accepted) in (0..).zip(ACCEPTED) {
            self.put(reg::DEVICE_FEATURES_SEL, half);
            self.put(reg::DRIVER_FEATURES_SEL, half);
            self.put(
                reg::DRIVER_FEATURES,
                self.get(reg::DEVICE_FEATURES) & accepted,
            );
        }
        self.put(reg::STATUS, READY[2]);
    }

    /// Sets DRIVER_OK.
    pub fn go(self) {
        self.put(reg::STATUS, READY[3]);
    }

    /// Sets a queue up, wherever the addresses are.
    pub fn set_queue(self, number: u64, entries: u32, addresses: [u64; 3]) {
        self.put(reg::QUEUE_SEL, number as u32);
        self.put(reg::QUEUE_NUM, entries);
        for (register, address) in reg::QUEUE_ADDRESSES.into_iter().zip(addresses) {
            self.put(register, address as u32);
            self.put(register + 4, (address >> 32) as u32);
        }
        self.put(reg::QUEUE_READY, 1);
    }

    pub fn notify(self, queue: u64) {
        self.put(reg::QUEUE_NOTIFY, queue as u32);
    }

    /// Resets the device and starts it with empty queues; returns these.
    pub fn start(self) -> [Queue; QUEUES as usize] {
        self.begin();
        let queues = self.queues();
        for queue in queues.iter().filter(|queue| queue.entries > 0) {
            fill(queue.start, 0, QUEUE_BYTES as usize);
            let addresses = [queue.start, queue.available(), queue.used()];
            self.set_queue(queue.number, queue.entries.into(), addresses);
        }
        self.go();
        queues
    }

    /// The queues as they are before the device is started.
    pub fn queues(self) -> [Queue; QUEUES as usize] {
        std::array::from_fn(|number| {
            self.put(reg::QUEUE_SEL, number as u32);
            let room = self.get(reg::QUEUE_NUM_MAX).min(ENTRIES.into());
            Queue {
                device: self,
                number: number as u64,
                start: QUEUES_START + (self.number * QUEUES + number as u64) * QUEUE_BYTES,
                entries: room as u16,
                posted: 0,
                taken: 0,
            }
        })
    }
}

/// A queue with its rings in the guest's memory.
#[derive(Clone, Copy)]
pub struct Queue {
    device: Device,
    pub number: u64,
    start: u64,
    /// 0 if the device has no such queue.
    pub entries: u16,
    posted: u16,
    taken: u16,
}

impl Queue {
    pub fn available(&self) -> u64 {
        self.start + 0x2000
    }

    pub fn used(&self) -> u64 {
        self.start + 0x3000
    }

    pub fn descriptor(&self, index: u16) -> u64 {
        self.start + u64::from(index % ENTRIES) * 16
    }

    pub fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        describe(self.descriptor(index), address, length, flags, next);
    }

    /// The number of the descriptor that nothing uses while all that was posted is of one part each
    /// and comes back in order.
    pub fn next_place(&self) -> u16 {
        self.posted % self.entries.max(1)
    }

    /// Makes a chain available that begins at a descriptor.
    pub fn post(&mut self, head: u16) {
        let place = u64::from(self.next_place());
        put16(self.available() + 4 + 2 * place, head);
        self.posted = self.posted.wrapping_add(1);
        put16(self.available() + 2, self.posted);
    }

    pub fn notify(&self) {
        self.device.notify(self.number);
    }

    /// The next chain that the device has returned: its head, and the bytes written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if get16(self.used() + 2) == self.taken {
            return None;
        }
        let place = self.used() + 4 + 8 * u64::from(self.taken % self.entries.max(1));
        self.taken = self.taken.wrapping_add(1);
        Some((get32(place) as u16, get32(place + 4)))
    }

    /// Waits until the device has returned a chain. None if it asks for a reset, or takes too long.
    pub fn wait(&mut self) -> Option<(u16, u32)> {
        for turn in 1..=2_000_000 {
            let taken = self.take();
            if taken.is_some() {
                return taken;
            }
            if turn % 20_000 == 0 && self.device.get(reg::STATUS) & NEEDS_RESET != 0 {
                return None;
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Sends a request of one part for the device to read and one for it to write, and waits.
    pub fn ask(&mut self, sent: (u64, u32), room: (u64, u32)) -> Option<u32> {
        self.describe(0, sent.0, sent.1, if room.1 > 0 { NEXT } else { 0 }, 1);
        self.describe(1, room.0, room.1, WRITE, 0);
        self.post(0);
        self.notify();
        self.wait().map(|(_, written)| written)
    }
}

/// Writes a descriptor anywhere.
pub fn describe(place: u64, address: u64, length: u32, flags: u16, next: u16) {
    put64(place, address);
    put32(place + 8, length);
    put16(place + 12, flags);
    put16(place + 14, next);
}
