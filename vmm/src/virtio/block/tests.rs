use super::*;
use crate::virtio::fake_driver::FakeDriver;
use rvm_protocol::vmm::TokenBucket;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestAddress};

const SECTORS: u64 = 64;

fn config(read_only: bool, block_size: u32) -> DiskConfig {
    DiskConfig {
        read_only,
        serial: "disk-0".to_owned(),
        block_size,
        layer: false,
    }
}

fn disk(read_only: bool) -> (FakeDriver<Block>, File) {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; 512]).unwrap();
    }
    let block = Block::new(
        file.try_clone().unwrap(),
        &config(read_only, 512),
        &Rate::default(),
    )
    .unwrap();
    (FakeDriver::new(block), file)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    Header {
        kind,
        reserved: 0,
        sector,
    }
    .as_slice()
    .to_vec()
}

/// The response's data and its status.
fn ask(driver: &mut FakeDriver<Block>, request: &[u8], room: usize) -> (Vec<u8>, u8) {
    let mut bytes = driver.request(0, request, room + 1).unwrap();
    let status = if bytes.len() == room + 1 {
        bytes.pop().unwrap()
    } else {
        // Failed: the status is the last byte of the buffer all the same.
        driver.response_byte(room)
    };
    (bytes, status)
}

#[test]
fn sectors_are_read_from_their_place() {
    let (mut driver, _) = disk(false);
    let (data, status) = ask(&mut driver, &header(request::IN, 7), 1024);
    assert_eq!(status, Status::Ok as u8);
    assert_eq!(data, [[7; 512], [8; 512]].concat());
}

#[test]
fn a_request_transfers_no_more_than_its_segments_may_have() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * MAX_BYTES).unwrap();
    let mut driver =
        FakeDriver::new(Block::new(file, &config(false, 512), &Rate::default()).unwrap());
    // The same memory over and over, 2 MiB at a time.
    let mut read = |bytes: u64| {
        let start = crate::virtio::fake_driver::BUFFERS_START;
        let head = Descriptor::new(start, 16, 0, 0);
        driver
            .memory()
            .write_slice(&header(request::IN, 0), GuestAddress(start))
            .unwrap();
        let room = |length| Descriptor::new(start + 0x1000, length, VRING_DESC_F_WRITE as u16, 0);
        let pieces = (bytes as u32).div_ceil(2 << 20);
        let rooms = (0..pieces).map(|piece| (bytes as u32 - piece * (2 << 20)).min(2 << 20));
        let status = Descriptor::new(start + 0x80, 1, VRING_DESC_F_WRITE as u16, 0);
        let list = [head].into_iter().chain(rooms.map(room)).chain([status]);
        driver.post_descriptors(0, list.collect());
        driver.notify(0).unwrap();
        driver.response(0).unwrap();
        driver
            .memory()
            .read_obj::<u8>(GuestAddress(start + 0x80))
            .unwrap()
    };
    assert_eq!(read(MAX_BYTES), Status::Ok as u8);
    assert_eq!(read(MAX_BYTES + 512), Status::IoError as u8);
}

#[test]
fn sectors_are_written_to_their_place() {
    let (mut driver, mut file) = disk(false);
    let request = [header(request::OUT, 3), vec![0xaa; 512]].concat();
    assert_eq!(ask(&mut driver, &request, 0).1, Status::Ok as u8);
    let mut sector = [0; 512];
    file.seek(SeekFrom::Start(3 * 512)).unwrap();
    file.read_exact(&mut sector).unwrap();
    assert_eq!(sector, [0xaa; 512]);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let (mut driver, _) = disk(true);
    let range = Range {
        sector: 0,
        num_sectors: 8,
        flags: 0,
    };
    for request in [
        [header(request::OUT, 0), vec![0; 512]].concat(),
        [header(request::DISCARD, 0), range.as_slice().to_vec()].concat(),
        [header(request::WRITE_ZEROES, 0), range.as_slice().to_vec()].concat(),
    ] {
        assert_eq!(ask(&mut driver, &request, 0).1, Status::IoError as u8);
    }
}

#[test]
fn nothing_outside_the_disk_can_be_accessed() {
    let (mut driver, file) = disk(false);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX >> SECTOR_SHIFT] {
        assert_eq!(
            ask(&mut driver, &header(request::IN, sector), 1024).1,
            Status::IoError as u8
        );
        let request = [header(request::OUT, sector), vec![1; 1024]].concat();
        assert_eq!(ask(&mut driver, &request, 0).1, Status::IoError as u8);
    }
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
}

#[test]
fn a_transfer_of_half_a_sector_is_refused() {
    let (mut driver, _) = disk(false);
    assert_eq!(
        ask(&mut driver, &header(request::IN, 0), 100).1,
        Status::IoError as u8
    );
}

#[test]
fn discarded_and_zeroed_sectors_read_zero() {
    for (kind, flags) in [
        (request::DISCARD, 0),
        (request::WRITE_ZEROES, 0),
        (request::WRITE_ZEROES, Range::UNMAP),
    ] {
        let (mut driver, _) = disk(false);
        let range = Range {
            sector: 8,
            num_sectors: 8,
            flags,
        };
        let request = [header(kind, 0), range.as_slice().to_vec()].concat();
        match ask(&mut driver, &request, 0).1 {
            status if status == Status::Ok as u8 => {
                assert_eq!(ask(&mut driver, &header(request::IN, 8), 512).0, [0; 512]);
                assert_eq!(ask(&mut driver, &header(request::IN, 16), 512).0, [16; 512]);
            }
            // The file system below the test cannot.
            status => assert_eq!(status, Status::Unsupported as u8),
        }
    }
}

#[test]
fn flags_that_a_range_cannot_have_are_unsupported() {
    for (kind, flags) in [(request::DISCARD, Range::UNMAP), (request::WRITE_ZEROES, 2)] {
        let (mut driver, file) = disk(false);
        let range = Range {
            sector: 8,
            num_sectors: 8,
            flags,
        };
        let request = [header(kind, 0), range.as_slice().to_vec()].concat();
        let status = ask(&mut driver, &request, 0).1;
        assert_eq!(status, Status::Unsupported as u8);
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 8 * 512).unwrap();
        assert_eq!(sector, [8; 512]);
    }
}

#[test]
fn a_disk_has_whole_blocks_of_the_size_that_the_host_gave() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(3 * 4096 + 512).unwrap();
    let block = Block::new(
        file.try_clone().unwrap(),
        &config(false, 4096),
        &Rate::default(),
    )
    .unwrap();
    let mut space = [0; 24];
    block.read_config(0, &mut space);
    assert_eq!(space[..8], 24_u64.to_le_bytes());
    assert_eq!(space[20..], 4096_u32.to_le_bytes());
    for size in [0, 1, 511, 1536, 8192, u32::MAX] {
        let wrong = Block::new(
            file.try_clone().unwrap(),
            &config(false, size),
            &Rate::default(),
        );
        assert!(wrong.is_err(), "{size}");
    }
}

#[test]
fn the_id_is_the_one_the_host_gave() {
    let (mut driver, _) = disk(false);
    let (id, status) = ask(&mut driver, &header(request::GET_ID, 0), ID_BYTES);
    assert_eq!(status, Status::Ok as u8);
    assert_eq!(id, b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (mut driver, _) = disk(false);
    assert_eq!(
        ask(&mut driver, &header(99, 0), 0).1,
        Status::Unsupported as u8
    );
}

#[test]
fn a_request_without_room_for_its_status_is_malformed() {
    let (mut driver, _) = disk(false);
    assert!(driver.request(0, &header(request::IN, 0), 0).is_err());
}

#[test]
fn an_error_of_the_file_is_an_error_of_its_request_alone() {
    let (mut driver, file) = disk(false);
    // Truncated under the machine: what is left is there, and what is gone is not zeroes.
    file.set_len(8 * 512).unwrap();
    let status = ask(&mut driver, &header(request::IN, 8), 512).1;
    assert_eq!(status, Status::IoError as u8);
    let (data, status) = ask(&mut driver, &header(request::IN, 7), 512);
    assert_eq!((data, status), (vec![7; 512], Status::Ok as u8));
}

#[test]
fn a_write_that_the_file_refuses_is_an_io_error() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(SECTORS * 512).unwrap();
    let file = File::open(named.path()).unwrap();
    let mut driver =
        FakeDriver::new(Block::new(file, &config(false, 512), &Rate::default()).unwrap());
    let request = [header(request::OUT, 3), vec![0xaa; 512]].concat();
    assert_eq!(ask(&mut driver, &request, 0).1, Status::IoError as u8);
    let (data, status) = ask(&mut driver, &header(request::IN, 3), 512);
    assert_eq!((data, status), (vec![0; 512], Status::Ok as u8));
}

#[test]
fn a_limited_disk_serves_what_its_rate_admits_and_goes_on_by_itself() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * 512).unwrap();
    let rate = Rate {
        // One request that owes 4 KiB, of which 1 KiB comes back in 50 ms.
        bytes: Some(TokenBucket {
            size: 1024,
            refill_ms: 50,
            burst: 0,
        }),
        operations: None,
    };
    let mut driver = FakeDriver::new(Block::new(file, &config(false, 512), &rate).unwrap());
    for _ in 0..3 {
        driver.post(0, &header(request::IN, 0), 4096 + 1);
    }
    driver.notify(0).unwrap();
    driver.notify(0).unwrap();
    let answers =
        |driver: &mut FakeDriver<Block>| std::iter::from_fn(|| driver.response(0)).count();
    assert_eq!(answers(&mut driver), 1, "however often it is notified");
    let begun = std::time::Instant::now();
    let mut answered = 0;
    while answered < 2 {
        assert!(begun.elapsed().as_secs() < 20, "{answered}");
        std::thread::sleep(std::time::Duration::from_millis(5));
        // As the timer does.
        driver.wake().unwrap();
        answered += answers(&mut driver);
    }
    assert!(begun.elapsed().as_millis() >= 250, "{:?}", begun.elapsed());
}

/// Saves a disk, and restores its state into one on another file.
fn restored_on(file: &File, state: &[u8]) -> Result<(), DeviceError> {
    let file = file.try_clone().unwrap();
    let block = Block::new(file, &config(false, 512), &Rate::default());
    let mut driver = FakeDriver::new(block.unwrap());
    driver.call(|device, io| device.restore(state, io))
}

#[test]
fn a_machine_goes_on_with_the_same_disk_or_a_copy_and_with_no_other() {
    let (mut driver, file) = disk(false);
    let earlier = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    file.set_modified(earlier).unwrap();
    let state = driver.call(|device, io| device.save(io)).unwrap();
    restored_on(&file, &state).unwrap();
    let (_, copy) = disk(false);
    restored_on(&copy, &state).unwrap();
    copy.set_len(512).unwrap();
    let smaller = restored_on(&copy, &state).unwrap_err().to_string();
    assert!(smaller.contains("it has 512 bytes"), "{smaller}");
    file.write_all_at(b"changed", 0).unwrap();
    let changed = restored_on(&file, &state).unwrap_err().to_string();
    assert!(changed.contains("written to"), "{changed}");
    for damaged in [&state[..1], b""] {
        assert!(restored_on(&copy, damaged).is_err());
    }
}
