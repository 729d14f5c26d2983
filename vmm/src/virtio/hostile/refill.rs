//! A driver that makes requests available as fast as the device returns them, from another CPU: no
//! queue is ever empty, and yet every call of the device must end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use super::*;
use crate::memory::{CurrentMemory, GuestMemory};
use crate::virtio::budget::MAX_REQUESTS;
use crate::virtio::chain::ChainError;
use crate::virtio::fake_driver::Rings;
use crate::virtio::spec::feature;
use crate::virtio::thread::DeviceThread;

/// How many requests the driver has; it makes each available again and again.
const REQUESTS: u16 = 8;

/// How long a busy machine may take to give the driver and the device a CPU each at the same time.
const PATIENCE: Duration = Duration::from_secs(180);

static ALONE: Mutex<()> = Mutex::new(());

/// A CPU of the guest that keeps a queue full until this is dropped.
struct Refill {
    over: Arc<AtomicBool>,
    cpu: Option<JoinHandle<()>>,
}

impl Refill {
    /// The queue has [`REQUESTS`] requests, made available in all of its ring. Later the device may
    /// have as many at a time.
    fn start(memory: Arc<GuestMemory>, rings: Rings) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let refill = move || {
            while !seen.load(Ordering::Relaxed) {
                let returned: u16 = memory.read_obj(rings.used_index()).unwrap();
                let available = returned.wrapping_add(REQUESTS);
                memory
                    .write_obj(available, rings.available_index())
                    .unwrap();
            }
        };
        Self {
            over,
            cpu: Some(std::thread::spawn(refill)),
        }
    }
}

impl Drop for Refill {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(cpu) = self.cpu.take() {
            cpu.join().unwrap();
        }
    }
}

/// Posts a request in each place of a queue's ring.
fn fill<D: VirtioDevice>(driver: &mut FakeDriver<D>, queue: usize, sent: &[u8], room: usize) {
    for _ in 0..REQUESTS {
        driver.post(queue, sent, room);
    }
    // A second round of the same requests, which the refilling CPU makes available.
    let rings = Rings::of(queue);
    for place in 0..REQUESTS {
        let head: u16 = driver.memory().read_obj(rings.available(place)).unwrap();
        let again = rings.available(place + REQUESTS);
        driver.memory().write_obj(head, again).unwrap();
    }
}

/// Plays against a queue of a device, whose calls must end with the queue not empty.
fn refilled<D: VirtioDevice>(device: D, queue: usize, sent: &[u8], room: usize) {
    // One at a time: each needs a CPU for the driver and one for the device.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut driver = FakeDriver::without_start(device);
    fill(&mut driver, queue, sent, room);
    let rings = Rings::of(queue);
    let memory = driver.shared_memory();
    let _cpu = Refill::start(Arc::clone(&memory), Rings::of(queue));
    let begun = Instant::now();
    let (mut before, mut postponed) = (0, 0);
    // On a busy machine the other CPU may be late, and the queue be empty now and then.
    while postponed < 3 {
        assert!(begun.elapsed() < PATIENCE, "the queue was never full");
        let started = Instant::now();
        driver.notify(queue).unwrap();
        assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
        let after: u16 = memory.read_obj(rings.used_index()).unwrap();
        let served = usize::from(after.wrapping_sub(before));
        assert!(served <= MAX_REQUESTS, "{served} requests in one call");
        postponed += usize::from(driver.postponed == [queue]);
        before = after;
    }
}

#[test]
fn a_console_that_is_refilled_yields() {
    let log = ConsoleLog::new(tempfile::tempfile().unwrap()).unwrap();
    refilled(Console::new(Arc::new(Mutex::new(log))), 1, &[b'x'; 4096], 0);
}

#[test]
fn a_balloon_that_is_refilled_yields() {
    let pages: Vec<u8> = (0x1000..0x1100_u32).flat_map(u32::to_le_bytes).collect();
    refilled(Balloon::default(), 0, &pages, 0);
    refilled(Balloon::default(), 1, &pages, 0);
    refilled(Balloon::default(), 2, &[], 4096);
}

#[test]
fn a_source_of_random_numbers_that_is_refilled_yields() {
    refilled(Rng, 0, &[], 64);
}

#[test]
fn pluggable_memory_that_is_refilled_yields() {
    let device = Mem::new((16 << 20)..(32 << 20), Sizes::default());
    refilled(device, 0, &[0; 24], 10);
}

#[test]
fn a_disk_that_is_refilled_yields() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let config = DiskConfig {
        read_only: false,
        serial: "disk".to_owned(),
        block_size: 512,
        layer: false,
    };
    // Reads the first sectors.
    let disk = Block::new(file, &config, &Rate::default()).unwrap();
    refilled(disk, 0, &[0; 16], 512 + 1);
}

#[test]
fn a_layer_that_is_refilled_yields() {
    let file = tempfile::tempfile().unwrap();
    refilled(Pmem::new(file, 0, &(0..1 << 21)), 0, &[0; 4], 4);
}

#[test]
fn a_network_card_that_is_refilled_yields() {
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let card = Net::new(File::from(OwnedFd::from(ours)), [0; 6], &Rates::default()).unwrap();
    refilled(card, 1, &[0; 100], 0);
}

#[test]
fn streams_that_are_refilled_yield() {
    // Of an unknown stream, each of which is answered by a reset.
    let mut decisions = Decisions(&[1, 1, 1, 1]);
    let Act::Request(queue, sent, room) = packet(&mut decisions) else {
        panic!("a packet is a request");
    };
    refilled(Vsock::new(Vec::new()).unwrap(), queue, &sent, room);
}

#[test]
fn a_device_has_no_more_requests_at_a_time_than_the_queue() {
    let mut driver = FakeDriver::new(Rng);
    fill(&mut driver, 0, &[], 64);
    let memory = driver.shared_memory();
    let make_available = |count: u16| {
        let index = Rings::of(0).available_index();
        memory.write_obj(count, index).unwrap();
    };
    driver.call(|_, io| {
        // All of the ring, and then once more what the device has not returned.
        make_available(2 * REQUESTS);
        for _ in 0..2 * REQUESTS {
            assert!(io.pop(0).unwrap().is_some());
        }
        make_available(3 * REQUESTS);
        assert!(matches!(io.pop(0), Err(ChainError::Unreturned)));
    });
}

#[test]
fn the_devices_of_a_thread_take_turns_until_each_queue_is_empty() {
    let mut thread = DeviceThread::new().unwrap();
    let mut greedy = FakeDriver::new(Balloon::default());
    let mut other = FakeDriver::new(Rng);
    let memory = CurrentMemory::new(greedy.shared_memory());
    let slot = thread.add(Box::new(Balloon::default()), memory).unwrap();
    slot.start(feature::VERSION_1, vec![Rings::of(0).queue()]);
    let memory = CurrentMemory::new(other.shared_memory());
    let waiting = thread.add(Box::new(Rng), memory).unwrap();
    waiting.start(feature::VERSION_1, vec![Rings::of(0).queue()]);
    // Each of these requests is all that one call may do.
    let pages: Vec<u8> = (0x1000..0x1100_u32).flat_map(u32::to_le_bytes).collect();
    for _ in 0..REQUESTS {
        greedy.post(0, &pages, 0);
    }
    assert!(slot.notify(0).is_none());
    for served in 1..=REQUESTS {
        other.post(0, &[], 64);
        assert!(waiting.notify(0).is_none());
        thread.handle_pending().unwrap();
        assert!(other.response(0).is_some(), "the other device had its turn");
        let index = Rings::of(0).used_index();
        let returned: u16 = greedy.memory().read_obj(index).unwrap();
        assert_eq!(returned, served, "the device goes on unasked");
    }
}
