//! Drivers that keep no rule. Every device is handed rings, requests, configuration writes, resets
//! and saved states as bytes decide: none may make it panic, or keep its thread for long. The bytes
//! are random ones in the tests here, and a fuzzer's below `fuzz/`.

mod decisions;
#[cfg(test)]
mod refill;
mod registers;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rvm_fuzz_input::Decisions;
use rvm_protocol::vmm::{DiskConfig, Rate, Rates};
use rvm_protocol::{GUEST_CID, READY_PORT};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::block::Block;
use super::console::{Console, ConsoleLog};
use super::device::{DeviceError, VirtioDevice};
use super::fake_driver::FakeDriver;
use super::mem::{Mem, Sizes};
use super::net::Net;
use super::pmem::Pmem;
use super::rng::Rng;
use super::vsock::Vsock;

use self::decisions::act;
pub use self::registers::{registers, restore};

/// Far more than any of these calls needs, on a busy machine too.
const LONG: Duration = Duration::from_secs(5);

/// What a driver, or the host at the other end of a device, does.
#[derive(Clone, Debug)]
enum Act {
    /// Writes bytes into memory: to buffers, or to the rings.
    Write(u64, Vec<u8>),
    /// Makes descriptors available.
    Publish(usize, u16, Vec<(u64, u32, u16, u16)>),
    /// Posts a well-formed request with these bytes and room for so many.
    Request(usize, Vec<u8>, usize),
    Notify(usize),
    ReadConfig(usize, usize),
    WriteConfig(usize, Vec<u8>),
    /// The host's end sends bytes, or is closed if there are none.
    Host(Vec<u8>),
    Restart,
    /// Restarts the device with a saved state, its own if there is none here.
    Restore(Option<Vec<u8>>),
}

/// A packet of a stream, on one of a few ports, whose length may be a lie.
fn packet(decisions: &mut Decisions<'_>) -> Act {
    let dst_port = match decisions.choose(2) {
        0 => READY_PORT,
        // The first that the host's ends get.
        _ => (1 << 16) + u32::from(decisions.choose(4)),
    };
    let (op, flags) = (decisions.choose(9), decisions.choose(4));
    let (buf_alloc, fwd_cnt) = (decisions.u32() % 70_000, decisions.u32());
    let lie = match decisions.choose(5) {
        0 => decisions.u32(),
        _ => 0,
    };
    let data = decisions.bytes();
    // struct virtio_vsock_hdr: two context ids, two ports, length, type and operation.
    let mut header = [u64::from(GUEST_CID), 2].map(u64::to_le_bytes).concat();
    let kind = 1 | u32::from(op) << 16;
    let length = data.len() as u32 ^ lie;
    for word in [
        1024,
        dst_port,
        length,
        kind,
        flags.into(),
        buf_alloc,
        fwd_cnt,
    ] {
        header.extend(word.to_le_bytes());
    }
    Act::Request(1, [header, data].concat(), 0)
}

/// Plays against a device, which is reset whenever it says that its driver violated the protocol.
fn play<D: VirtioDevice>(
    mut driver: FakeDriver<D>,
    mut next: impl FnMut() -> Option<Act>,
    mut host: impl FnMut(&[u8]),
) {
    let started = Instant::now();
    while let Some(act) = next() {
        if perform(&mut driver, act, &mut host).is_err() {
            driver.restart();
        }
    }
    assert!(
        started.elapsed() < LONG,
        "the device took {:?}",
        started.elapsed()
    );
}

fn perform<D: VirtioDevice>(
    driver: &mut FakeDriver<D>,
    act: Act,
    host: &mut impl FnMut(&[u8]),
) -> Result<(), DeviceError> {
    let queues = driver.device.info().queue_sizes.len();
    match act {
        Act::Write(address, bytes) => {
            let _ = driver.memory().write_slice(&bytes, GuestAddress(address));
        }
        Act::Publish(queue, head, list) => {
            let raw =
                |(address, length, flags, next)| Descriptor::new(address, length, flags, next);
            let list: Vec<_> = list.into_iter().map(raw).collect();
            driver.publish(queue % queues, head, &list);
        }
        Act::Request(queue, sent, room) => {
            driver.post(queue % queues, &sent, room);
            driver.notify(queue % queues)?;
        }
        Act::Notify(queue) => driver.notify(queue % queues)?,
        Act::ReadConfig(offset, length) => {
            driver.device.read_config(offset, &mut vec![0; length]);
        }
        Act::WriteConfig(offset, data) => driver.device.write_config(offset, &data),
        Act::Host(bytes) => {
            host(&bytes);
            driver.wake()?;
        }
        Act::Restart => driver.restart(),
        Act::Restore(state) => {
            let saved = || driver.call(|device, io| device.save(io)).ok();
            if let Some(state) = state.or_else(saved) {
                driver.restart();
                driver.call(|device, io| device.restore(&state, io))?;
            }
        }
    }
    Ok(())
}

fn no_host(_: &[u8]) {}

/// The acts that these bytes decide on.
fn acts<'a>(input: &'a [u8]) -> impl FnMut() -> Option<Act> + 'a {
    let mut decisions = Decisions(input);
    move || (!decisions.are_over()).then(|| act(&mut decisions))
}

/// Plays as the bytes decide, the first of which chooses the device.
pub fn devices(input: &[u8]) {
    let devices = [
        balloon, disk, console, memory, network, random, streams, layer,
    ];
    if let Some((first, rest)) = input.split_first() {
        devices[usize::from(*first) % devices.len()](rest);
    }
}

fn balloon(input: &[u8]) {
    play(FakeDriver::new(Balloon::default()), acts(input), no_host);
}

fn disk(input: &[u8]) {
    let mut decisions = Decisions(input);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let config = DiskConfig {
        read_only: decisions.choose(4) == 0,
        serial: "disk".to_owned(),
        block_size: [512, 4096][usize::from(decisions.choose(2))],
        layer: false,
    };
    let driver = FakeDriver::new(Block::new(file, &config, &Rate::default()).unwrap());
    play(driver, acts(decisions.0), no_host);
}

/// A disk that is mapped.
fn layer(input: &[u8]) {
    let range = (1 << 32)..(1 << 32) + (2 << 20);
    let driver = FakeDriver::new(Pmem::new(tempfile::tempfile().unwrap(), 0, &range));
    play(driver, acts(input), no_host);
}

fn console(input: &[u8]) {
    let log = ConsoleLog::new(tempfile::tempfile().unwrap()).unwrap();
    let driver = FakeDriver::new(Console::new(Arc::new(Mutex::new(log))));
    play(driver, acts(input), no_host);
}

/// Pluggable memory.
fn memory(input: &[u8]) {
    const BLOCK: u64 = 2 << 20;
    let mut decisions = Decisions(input);
    let (usable, requested) = (decisions.choose(8), decisions.choose(8));
    let sizes = Sizes::default();
    sizes.set_usable(u64::from(usable) * BLOCK);
    sizes.request(u64::from(requested.min(usable)) * BLOCK);
    let region = (16 << 20)..(32 << 20);
    let driver = FakeDriver::new(Mem::new(region, sizes));
    play(driver, acts(decisions.0), no_host);
}

fn network(input: &[u8]) {
    // A pair of datagram sockets replaces the TAP, whose ioctls `start` needs.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
    }
    let driver = FakeDriver::without_start(
        Net::new(File::from(OwnedFd::from(ours)), [0; 6], &Rates::default()).unwrap(),
    );
    play(driver, acts(input), |bytes| {
        let _ = theirs.send(&[&[0; 12], bytes].concat());
        let _ = theirs.recv(&mut [0; 100]);
    });
}

fn random(input: &[u8]) {
    play(FakeDriver::new(Rng), acts(input), no_host);
}

fn streams(input: &[u8]) {
    const PORT: u32 = 1024;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    let driver = FakeDriver::new(Vsock::new(vec![(PORT, listener)]).unwrap());
    let mut decisions = Decisions(input);
    let next = || {
        (!decisions.are_over()).then(|| match decisions.choose(2) {
            0 => act(&mut decisions),
            _ => packet(&mut decisions),
        })
    };
    let mut streams = Vec::new();
    play(driver, next, |bytes| match bytes {
        [] => streams.clear(),
        _ => streams.extend(UnixStream::connect(&path).map(|mut stream| {
            let _ = stream.write_all(bytes);
            stream
        })),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases()))]

        #[test]
        fn a_balloon_survives(input in input()) {
            balloon(&input);
        }

        #[test]
        fn a_disk_survives(input in input()) {
            disk(&input);
        }

        #[test]
        fn a_layer_survives(input in input()) {
            layer(&input);
        }

        #[test]
        fn a_console_survives(input in input()) {
            console(&input);
        }

        #[test]
        fn pluggable_memory_survives(input in input()) {
            memory(&input);
        }

        #[test]
        fn a_network_card_survives(input in input()) {
            network(&input);
        }

        #[test]
        fn a_source_of_random_numbers_survives(input in input()) {
            random(&input);
        }

        #[test]
        fn streams_survive(input in input()) {
            streams(&input);
        }

        #[test]
        fn registers_survive(input in input()) {
            registers(&input);
        }
    }

    fn input() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..1500)
    }

    /// RVM_TEST_CASES has more drivers play than fit a test run.
    fn cases() -> u32 {
        let cases = std::env::var("RVM_TEST_CASES").ok();
        cases.and_then(|cases| cases.parse().ok()).unwrap_or(64)
    }
}
