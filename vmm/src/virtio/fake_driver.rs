//! A fake driver for the tests of devices: it writes requests to memory as a guest's driver does
//! and reads the responses from the used ring. It needs no machine, no thread and no interrupt.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use super::budget::Budget;
use super::device::{DeviceError, DeviceIo, HostFds, Readiness, VirtioDevice};
use crate::memory::{self, GuestMemory};

const QUEUE_SIZE: u16 = 16;
pub const QUEUES_START: u64 = 0x10_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
pub const BUFFERS_START: u64 = 0x80_0000;

thread_local! {
    /// Guest memory is never unmapped, so it serves one driver after the other.
    static MAPPED: RefCell<Vec<(u64, Arc<GuestMemory>)>> = const { RefCell::new(Vec::new()) };
}

/// `mib` MiB of guest memory for which nobody else has a use.
pub fn zeroed_memory(mib: u64) -> Arc<GuestMemory> {
    MAPPED.with_borrow_mut(|mapped| {
        let is_free = |(size, memory): &&(u64, Arc<GuestMemory>)| {
            *size == mib && Arc::strong_count(memory) == 1
        };
        if let Some((_, memory)) = mapped.iter().find(is_free) {
            for region in memory.iter() {
                memory::discard(&region.as_volatile_slice().unwrap()).unwrap();
            }
            return Arc::clone(memory);
        }
        // A fuzzer starts anew some thousand times a second, and a huge page takes long to clear.
        #[cfg(not(test))]
        rustix::thread::disable_transparent_huge_pages(true).unwrap();
        let memory = memory::map(mib).unwrap();
        mapped.push((mib, Arc::clone(&memory)));
        memory
    })
}

/// The watches of a device, by descriptor.
#[derive(Default)]
pub struct Watches(pub HashMap<RawFd, (u32, Readiness)>);

impl HostFds for Watches {
    fn watch(&mut self, fd: BorrowedFd<'_>, token: u32, wanted: Readiness) -> io::Result<()> {
        self.0.insert(fd.as_raw_fd(), (token, wanted));
        Ok(())
    }

    fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        self.0.remove(&fd.as_raw_fd());
    }
}

/// A driver and its device.
pub struct FakeDriver<D> {
    pub device: D,
    pub watches: Watches,
    /// The queues that the last call has left requests in, see [`Budget`].
    pub postponed: Vec<usize>,
    memory: Arc<GuestMemory>,
    queues: Vec<Queue>,
    /// Requests made available so far, by queue.
    available: Vec<u16>,
    /// Responses taken so far, by queue.
    taken: Vec<u16>,
    last_response: GuestAddress,
}

impl<D: VirtioDevice> FakeDriver<D> {
    /// Starts the device with every queue ready and every feature accepted.
    pub fn new(device: D) -> Self {
        let mut driver = Self::without_start(device);
        let features = driver.device.info().features;
        driver
            .call(|device, io| device.start(features, io))
            .unwrap();
        driver
    }

    /// A driver that does not call the device's `start`.
    pub fn without_start(device: D) -> Self {
        let memory = zeroed_memory(32);
        let count = device.info().queue_sizes.len();
        let queues = (0..count).map(|index| Rings::of(index).queue()).collect();
        Self {
            device,
            watches: Watches::default(),
            postponed: Vec::new(),
            memory,
            queues,
            available: vec![0; count],
            taken: vec![0; count],
            last_response: GuestAddress(0),
        }
    }

    /// Resets the device and starts it again, with fresh queues, as a driver does that gives up.
    pub fn restart(&mut self) {
        self.device.reset(&mut self.watches);
        let count = self.queues.len();
        self.queues = (0..count).map(|index| Rings::of(index).queue()).collect();
        self.available = vec![0; count];
        self.taken = vec![0; count];
        let features = self.device.info().features;
        // A device that cannot start stays as it is, without watches.
        let _ = self.call(|device, io| device.start(features, io));
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The memory for another CPU of the guest.
    pub fn shared_memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    /// Calls the device with its queues.
    pub fn call<T>(&mut self, work: impl FnOnce(&mut D, &mut DeviceIo<'_>) -> T) -> T {
        let mut io = DeviceIo {
            memory: &self.memory,
            queues: self.queues.iter_mut().collect(),
            host: &mut self.watches,
            budget: Budget::default(),
        };
        let result = work(&mut self.device, &mut io);
        self.postponed = io.budget.postponed().collect();
        result
    }

    /// Makes a request of `sent` and room for `room` bytes available; does not notify the device.
    pub fn post(&mut self, queue: usize, sent: &[u8], room: usize) {
        // Successive requests have buffers of their own, far enough apart not to overlap.
        let number = u64::from(self.available[queue] % 8) + queue as u64 * 8;
        let buffer = GuestAddress(BUFFERS_START + number * 0x4_0000);
        self.memory.write_slice(sent, buffer).unwrap();
        self.last_response = GuestAddress(buffer.0 + sent.len() as u64);
        let mut descriptors = Vec::new();
        if !sent.is_empty() {
            descriptors.push(Descriptor::new(buffer.0, sent.len() as u32, 0, 0));
        }
        if room > 0 {
            let flags = VRING_DESC_F_WRITE as u16;
            descriptors.push(Descriptor::new(self.last_response.0, room as u32, flags, 0));
        }
        self.post_descriptors(queue, descriptors);
    }

    /// Makes a request of these descriptors available, chained one after the other.
    pub fn post_descriptors(&mut self, queue: usize, mut descriptors: Vec<Descriptor>) {
        let head = self.available[queue] % (QUEUE_SIZE / 2) * 2;
        let count = descriptors.len();
        for (index, descriptor) in descriptors.iter_mut().enumerate() {
            if index + 1 < count {
                *descriptor = Descriptor::new(
                    descriptor.addr().0,
                    descriptor.len(),
                    descriptor.flags() | VRING_DESC_F_NEXT as u16,
                    head + index as u16 + 1,
                );
            }
        }
        self.publish(queue, head, &descriptors);
    }

    /// Writes descriptors unchanged at `head` and makes `head` available.
    pub fn publish(&mut self, queue: usize, head: u16, descriptors: &[Descriptor]) {
        let rings = Rings::of(queue);
        for (index, descriptor) in (u64::from(head)..).zip(descriptors) {
            let place = rings.descriptors.unchecked_add(index * 16);
            self.memory.write_obj(*descriptor, place).unwrap();
        }
        let slot = u64::from(self.available[queue] % QUEUE_SIZE);
        self.memory
            .write_obj(head, rings.avail.unchecked_add(4 + slot * 2))
            .unwrap();
        self.available[queue] += 1;
        self.memory
            .write_obj(self.available[queue], rings.avail.unchecked_add(2))
            .unwrap();
    }

    /// Notifies the device of a queue.
    pub fn notify(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.call(|device, io| device.process_queue(queue, io))
    }

    /// Reports every descriptor that the device watches as ready.
    pub fn wake(&mut self) -> Result<(), DeviceError> {
        let mut watches: Vec<_> = self.watches.0.values().copied().collect();
        watches.sort_by_key(|(token, _)| *token);
        for (token, wanted) in watches {
            self.call(|device, io| device.process_host_event(token, wanted, io))?;
        }
        Ok(())
    }

    /// The next response on a queue: as many bytes as the device says it wrote.
    pub fn response(&mut self, queue: usize) -> Option<Vec<u8>> {
        let rings = Rings::of(queue);
        let used_index: u16 = self.memory.read_obj(rings.used.unchecked_add(2)).unwrap();
        if used_index == self.taken[queue] {
            return None;
        }
        let slot = u64::from(self.taken[queue] % QUEUE_SIZE);
        self.taken[queue] += 1;
        let used: [u32; 2] = self
            .memory
            .read_obj(rings.used.unchecked_add(4 + slot * 8))
            .unwrap();
        let mut bytes = vec![0; used[1] as usize];
        let mut index = u64::from(used[0]);
        loop {
            let place = rings.descriptors.unchecked_add(index * 16);
            let descriptor: Descriptor = self.memory.read_obj(place).unwrap();
            if descriptor.is_write_only() {
                self.memory
                    .read_slice(&mut bytes, descriptor.addr())
                    .unwrap();
                return Some(bytes);
            }
            if !descriptor.has_next() {
                return Some(Vec::new());
            }
            index = descriptor.next().into();
        }
    }

    /// Makes a request, notifies the device and takes the response.
    pub fn request(
        &mut self,
        queue: usize,
        sent: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, DeviceError> {
        self.post(queue, sent, room);
        self.notify(queue)?;
        Ok(self.response(queue).expect("the device responded"))
    }

    /// A byte of the last request's writable buffer, even past the response's length.
    pub fn response_byte(&self, offset: usize) -> u8 {
        self.memory
            .read_obj(GuestAddress(self.last_response.0 + offset as u64))
            .unwrap()
    }
}

/// The addresses of a queue's rings.
pub struct Rings {
    descriptors: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
}

impl Rings {
    pub fn of(queue: usize) -> Self {
        let start = GuestAddress(QUEUES_START + queue as u64 * QUEUE_BYTES);
        Self {
            descriptors: start,
            avail: start.unchecked_add(0x1000),
            used: start.unchecked_add(0x2000),
        }
    }

    /// The index of the available ring, which counts the requests.
    pub fn available_index(&self) -> GuestAddress {
        self.avail.unchecked_add(2)
    }

    /// A place in the available ring.
    pub fn available(&self, place: u16) -> GuestAddress {
        self.avail.unchecked_add(4 + u64::from(place) * 2)
    }

    /// The index of the used ring, which counts the responses.
    pub fn used_index(&self) -> GuestAddress {
        self.used.unchecked_add(2)
    }

    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_desc_table_address(Some(self.descriptors.0 as u32), None);
        queue.set_avail_ring_address(Some(self.avail.0 as u32), None);
        queue.set_used_ring_address(Some(self.used.0 as u32), None);
        queue.set_ready(true);
        queue
    }
}
