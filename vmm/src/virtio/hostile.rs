//! Drivers that keep no rule. Every device is handed random rings, requests, configuration writes
//! and resets: none may make it panic, or keep its thread for long.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rvm_protocol::vmm::DiskConfig;
use rvm_protocol::{GUEST_CID, READY_PORT};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::block::Block;
use super::console::{Console, ConsoleLog};
use super::device::VirtioDevice;
use super::fake_driver::{BUFFERS_START, FakeDriver, QUEUES_START};
use super::mem::{Mem, Sizes};
use super::net::Net;
use super::rng::Rng;
use super::vsock::Vsock;

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
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..64_u64).prop_map(|number| BUFFERS_START + number * 0x800),
        1 => (0..0x4000_u64).prop_map(|offset| QUEUES_START + offset),
        1 => 31 << 20..33_u64 << 20,
        1 => any::<u64>(),
    ]
}

/// Numbers of operations, lengths and flags, small for the most part.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        3 => 0..8_u64,
        1 => 0..5000_u64,
        1 => (0..20_u64).prop_map(|number| number << 21),
        1 => any::<u64>(),
    ];
    let words = proptest::collection::vec(words, 0..8);
    let width = prop_oneof![Just(2), Just(4), Just(8)];
    (words, width).prop_map(|(words, width): (Vec<u64>, usize)| {
        let cut = |word: u64| word.to_le_bytes().into_iter().take(width);
        words.into_iter().flat_map(cut).collect()
    })
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let length = prop_oneof![4 => 0..100_u32, 1 => 0..100_000_u32, 1 => any::<u32>()];
    (address(), length, 0..8_u16, 0..20_u16)
}

fn act() -> impl Strategy<Value = Act> {
    let queue = || 0..4_usize;
    prop_oneof![
        2 => (address(), bytes()).prop_map(|(address, bytes)| Act::Write(address, bytes)),
        3 => (queue(), 0..16_u16, proptest::collection::vec(descriptor(), 1..6))
            .prop_map(|(queue, head, list)| Act::Publish(queue, head, list)),
        4 => (queue(), bytes(), 0..600_usize).prop_map(|(q, sent, room)| Act::Request(q, sent, room)),
        4 => queue().prop_map(Act::Notify),
        1 => (0..300_usize, 0..9_usize).prop_map(|(offset, length)| Act::ReadConfig(offset, length)),
        1 => (0..300_usize, bytes()).prop_map(|(offset, data)| Act::WriteConfig(offset, data)),
        1 => bytes().prop_map(Act::Host),
        1 => Just(Act::Restart),
    ]
}

/// A packet of a stream, on one of a few ports, whose length may be a lie.
fn packet() -> impl Strategy<Value = Act> {
    let host_port = prop_oneof![
        Just(READY_PORT),
        // The first that the host's ends get.
        (1 << 16)..(1 << 16) + 4_u32,
    ];
    let numbers = (0..9_u16, 0..4_u32, 0..70_000_u32, any::<u32>());
    let data = proptest::collection::vec(any::<u8>(), 0..300);
    let lie = prop_oneof![4 => Just(0), 1 => any::<u32>()];
    (host_port, numbers, data, lie).prop_map(|(dst_port, numbers, data, lie)| {
        let (op, flags, buf_alloc, fwd_cnt) = numbers;
        // struct virtio_vsock_hdr: two context ids, two ports, length, type and operation.
        let mut header = [u64::from(GUEST_CID), 2].map(u64::to_le_bytes).concat();
        let kind = 1 | u32::from(op) << 16;
        let length = data.len() as u32 ^ lie;
        for word in [1024, dst_port, length, kind, flags, buf_alloc, fwd_cnt] {
            header.extend(word.to_le_bytes());
        }
        Act::Request(1, [header, data].concat(), 0)
    })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    proptest::collection::vec(act(), 1..60)
}

/// Plays against a device, which is reset whenever it says that its driver violated the protocol.
fn play<D: VirtioDevice>(mut driver: FakeDriver<D>, acts: Vec<Act>, mut host: impl FnMut(&[u8])) {
    let queues = driver.device.info().queue_sizes.len();
    let started = Instant::now();
    for act in acts {
        let result = match act {
            Act::Write(address, bytes) => {
                let _ = driver.memory().write_slice(&bytes, GuestAddress(address));
                Ok(())
            }
            Act::Publish(queue, head, list) => {
                let raw =
                    |(address, length, flags, next)| Descriptor::new(address, length, flags, next);
                driver.publish(
                    queue % queues,
                    head,
                    &list.into_iter().map(raw).collect::<Vec<_>>(),
                );
                Ok(())
            }
            Act::Request(queue, sent, room) => {
                driver.post(queue % queues, &sent, room);
                driver.notify(queue % queues)
            }
            Act::Notify(queue) => driver.notify(queue % queues),
            Act::ReadConfig(offset, length) => {
                driver.device.read_config(offset, &mut vec![0; length]);
                Ok(())
            }
            Act::WriteConfig(offset, data) => {
                driver.device.write_config(offset, &data);
                Ok(())
            }
            Act::Host(bytes) => {
                host(&bytes);
                driver.wake()
            }
            Act::Restart => {
                driver.restart();
                Ok(())
            }
        };
        if result.is_err() {
            driver.restart();
        }
    }
    assert!(
        started.elapsed() < LONG,
        "the device took {:?}",
        started.elapsed()
    );
}

fn no_host(_: &[u8]) {}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn a_balloon_survives(acts in acts()) {
        play(FakeDriver::new(Balloon::default()), acts, no_host);
    }

    #[test]
    fn a_disk_survives(acts in acts(), read_only: bool, large: bool) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let config = DiskConfig {
            read_only,
            serial: "disk".to_owned(),
            block_size: if large { 4096 } else { 512 },
        };
        play(FakeDriver::new(Block::new(file, &config).unwrap()), acts, no_host);
    }

    #[test]
    fn a_console_survives(acts in acts()) {
        let log = ConsoleLog::new(tempfile::tempfile().unwrap()).unwrap();
        play(FakeDriver::new(Console::new(Arc::new(Mutex::new(log)))), acts, no_host);
    }

    #[test]
    fn pluggable_memory_survives(acts in acts(), usable in 0..8_u64, requested in 0..8_u64) {
        const BLOCK: u64 = 2 << 20;
        let sizes = Sizes::default();
        sizes.set_usable(usable * BLOCK);
        sizes.request(requested.min(usable) * BLOCK);
        let region = (16 << 20)..(32 << 20);
        play(FakeDriver::new(Mem::new(region, sizes)), acts, no_host);
    }

    #[test]
    fn a_network_card_survives(acts in acts()) {
        // A pair of datagram sockets replaces the TAP, whose ioctls `start` needs.
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let driver = FakeDriver::without_start(Net::new(File::from(OwnedFd::from(ours)), [0; 6]));
        play(driver, acts, |bytes| {
            let _ = theirs.send(&[&[0; 12], bytes].concat());
            let _ = theirs.recv(&mut [0; 100]);
        });
    }

    #[test]
    fn a_source_of_random_numbers_survives(acts in acts()) {
        play(FakeDriver::new(Rng), acts, no_host);
    }

    #[test]
    fn streams_survive(acts in proptest::collection::vec(prop_oneof![act(), packet()], 1..80)) {
        const PORT: u32 = 1024;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let listener = UnixListener::bind(&path).unwrap();
        let driver = FakeDriver::new(Vsock::new(vec![(PORT, listener)]).unwrap());
        let mut streams = Vec::new();
        play(driver, acts, |bytes| match bytes {
            [] => streams.clear(),
            _ => streams.extend(UnixStream::connect(&path).map(|mut stream| {
                let _ = stream.write_all(bytes);
                stream
            })),
        });
    }
}

/// RVM_TEST_CASES has more drivers play than fit a test run.
fn cases() -> u32 {
    let cases = std::env::var("RVM_TEST_CASES").ok();
    cases.and_then(|cases| cases.parse().ok()).unwrap_or(64)
}
