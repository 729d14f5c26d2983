use super::client::{Client, OPEN};
use super::deferred::{Deferred, MAX_KEPT, Ticket};
use super::*;
use crate::virtio::fake_driver::FakeDriver;
use proptest::prelude::*;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtiofsd::fuse::{AttrOut, InHeader, OpenIn, OpenOut, OutHeader};
use vm_memory::ByteValued;

fn fs() -> FakeDriver<Fs> {
    let open = |path: &str| File::open(path).unwrap();
    FakeDriver::new(
        Fs::new(
            ServerResources {
                own: OwnDescriptors {
                    files: open("/proc/self/fd"),
                    infos: open("/proc/self/fdinfo"),
                },
                max_fds: 1024,
            },
            "tag",
        )
        .unwrap(),
    )
}

const FUSE_INTERRUPT: u32 = 36;
const FUSE_GETATTR: u32 = 3;

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        unique: 7,
        nodeid: 1,
        ..InHeader::default()
    };
    [header.as_slice(), body].concat()
}

#[test]
fn the_tag_and_the_request_queues_are_announced() {
    let driver = fs();
    let mut config = [0; CONFIG_BYTES];
    driver.device.read_config(0, &mut config);
    assert_eq!(&config[..4], b"tag\0");
    assert_eq!(config[TAG_BYTES..], 2_u32.to_le_bytes());
}

#[test]
fn ports_are_a_feature_of_machines_that_have_them() {
    let mut driver = fs();
    assert_eq!(driver.device.info().features, 0);
    let versions = driver.device.offer_ports();
    assert_eq!(driver.device.info().features, PORTS);
    assert_eq!(versions.read(0), numbers::NO_VALUE, "no file has a number");
    assert_eq!(versions.read(u16::MAX), numbers::NO_VALUE);
}

#[test]
fn an_opens_answer_has_a_number_whose_port_has_its_value_until_the_file_changes() {
    let mut client = Client::new();
    let versions = client.driver.device.offer_ports();
    std::fs::write(client.path("file"), "text").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let inode = client.lookup("file").unwrap().nodeid;
    let mut open = |open_flags| {
        let request = OpenIn {
            flags: libc::O_RDONLY as u32,
            open_flags,
        };
        client.call(OPEN, inode, request.as_slice()).unwrap()
    };
    let answer = open(0);
    assert_eq!(
        answer.len(),
        size_of::<OpenOut>() + size_of::<AttrOut>() + 8
    );
    let number = u64::from_ne_bytes(*answer.last_chunk().unwrap());
    let (port, value) = (number as u16, (number >> 32) as u32);
    assert_eq!(versions.read(port), value);
    assert_eq!(open(1 << 31).len(), size_of::<OpenOut>(), "a late open");
    assert_eq!(versions.read(port), value);
    std::fs::write(client.path("file"), "other").unwrap();
    assert_ne!(versions.read(port), value);
}

#[test]
fn the_root_directory_has_attributes() {
    let mut driver = fs();
    let response = driver
        .request(REQUEST_QUEUE, &request(FUSE_GETATTR, &[0; 16]), 4096)
        .unwrap();
    let header = OutHeader::from_slice(&response[..size_of::<OutHeader>()]).unwrap();
    assert_eq!((header.error, header.unique), (0, 7));
    assert!(response.len() > size_of::<OutHeader>());
}

#[test]
fn an_unknown_operation_is_refused_and_not_fatal() {
    let mut driver = fs();
    let response = driver
        .request(REQUEST_QUEUE, &request(9999, &[]), 4096)
        .unwrap();
    let header = OutHeader::from_slice(&response).unwrap();
    assert_eq!(header.error, -libc::ENOSYS);
}

#[test]
fn a_message_shorter_than_its_header_breaks_the_device_and_nothing_else() {
    let mut driver = fs();
    let error = driver.request(REQUEST_QUEUE, b"short", 4096).unwrap_err();
    assert!(matches!(error, DeviceError::Protocol { .. }));
}

/// Takes the next request from its ring and keeps it.
fn keep_next(driver: &mut FakeDriver<Fs>) -> Ticket {
    driver.call(|fs, io| {
        let head = io.pop(REQUEST_QUEUE).unwrap().unwrap().head;
        let origin = Origin {
            queue: REQUEST_QUEUE,
            head,
            unique: u64::from(head),
        };
        fs.front.deferred.keep(origin).unwrap()
    })
}

fn deliver_replies(driver: &mut FakeDriver<Fs>) {
    driver
        .call(|fs, io| fs.process_host_event(REPLIES, Readiness::READABLE, io))
        .unwrap();
}

fn header_of(response: &[u8]) -> OutHeader {
    *OutHeader::from_slice(&response[..size_of::<OutHeader>()]).unwrap()
}

#[test]
fn kept_requests_are_answered_in_the_order_of_their_answers() {
    let mut driver = fs();
    let tickets = [(); 2].map(|()| {
        driver.post(REQUEST_QUEUE, &request(9999, &[]), 64);
        keep_next(&mut driver)
    });
    deliver_replies(&mut driver);
    assert_eq!(driver.response(REQUEST_QUEUE), None);
    let [first, second] = tickets;
    // A ticket may be used on any thread.
    std::thread::spawn(move || second.answer(Ok(b"later".to_vec())))
        .join()
        .unwrap();
    deliver_replies(&mut driver);
    let response = driver.response(REQUEST_QUEUE).unwrap();
    assert_eq!(header_of(&response).unique, 2);
    assert_eq!(&response[size_of::<OutHeader>()..], b"later");
    first.answer(Err(Errno::NOLCK));
    deliver_replies(&mut driver);
    let header = header_of(&driver.response(REQUEST_QUEUE).unwrap());
    assert_eq!((header.unique, header.error), (0, -libc::ENOLCK));
}

#[test]
fn other_requests_are_served_while_one_is_kept() {
    let mut driver = fs();
    driver.post(REQUEST_QUEUE, &request(9999, &[]), 64);
    let _ticket = keep_next(&mut driver);
    let response = driver
        .request(REQUEST_QUEUE, &request(FUSE_GETATTR, &[0; 16]), 4096)
        .unwrap();
    assert_eq!(header_of(&response).error, 0);
}

#[test]
fn a_ticket_that_is_lost_answers_that_the_request_was_interrupted() {
    let mut driver = fs();
    driver.post(REQUEST_QUEUE, &request(9999, &[]), 64);
    drop(keep_next(&mut driver));
    deliver_replies(&mut driver);
    let header = header_of(&driver.response(REQUEST_QUEUE).unwrap());
    assert_eq!(header.error, -libc::EINTR);
}

#[test]
fn a_reply_without_room_becomes_an_error() {
    let mut driver = fs();
    driver.post(REQUEST_QUEUE, &request(9999, &[]), 20);
    keep_next(&mut driver).answer(Ok(vec![0; 5]));
    deliver_replies(&mut driver);
    let header = header_of(&driver.response(REQUEST_QUEUE).unwrap());
    assert_eq!(header.error, -libc::EIO);
}

#[test]
fn an_interrupt_and_a_reset_cancel_kept_requests() {
    let mut driver = fs();
    for interrupted in [true, false] {
        driver.post(REQUEST_QUEUE, &request(9999, &[]), 64);
        let ticket = keep_next(&mut driver);
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let cancel = Box::new(move || flag.store(true, Ordering::Relaxed));
        driver
            .device
            .front
            .deferred
            .cancel_with(ticket.id(), cancel);
        if interrupted {
            driver.post(
                HIPRIO_QUEUE,
                &request(FUSE_INTERRUPT, &0_u64.to_le_bytes()),
                0,
            );
            driver.notify(HIPRIO_QUEUE).unwrap();
        } else {
            driver.call(|fs, io| fs.reset(io.host));
        }
        assert!(cancelled.load(Ordering::Relaxed));
        drop(ticket);
        deliver_replies(&mut driver);
        assert_eq!(driver.response(REQUEST_QUEUE).is_some(), interrupted);
    }
}

/// Eight requests with so much room for their answers that one call does not serve them all.
fn post_long_requests(client: &mut Client) {
    for _ in 0..8 {
        let message = client.message(message::opcode::STATFS, 1, &[]);
        client.driver.post(REQUEST_QUEUE, &message, 0x3_f000);
    }
}

#[test]
fn one_call_serves_a_part_of_what_is_there() {
    let mut client = Client::new();
    post_long_requests(&mut client);
    client.driver.notify(REQUEST_QUEUE).unwrap();
    assert_eq!(client.driver.postponed, [REQUEST_QUEUE]);
    let answers = |client: &mut Client| std::iter::from_fn(|| client.answer()).count();
    assert_eq!(answers(&mut client), 5);
    client.driver.notify(REQUEST_QUEUE).unwrap();
    assert_eq!(client.driver.postponed, [0; 0]);
    assert_eq!(answers(&mut client), 3);
}

#[test]
fn an_interrupt_takes_effect_when_the_requests_before_it_have_been_taken() {
    let mut client = Client::new();
    post_long_requests(&mut client);
    client.interrupt(77);
    assert_eq!(client.driver.postponed, [REQUEST_QUEUE]);
    assert_eq!(client.driver.device.front.interrupted, [77]);
    client.driver.notify(REQUEST_QUEUE).unwrap();
    assert_eq!(client.driver.device.front.interrupted, [0; 0]);
}

#[test]
fn a_request_for_room_waits_for_what_was_forgotten_before_it() {
    let mut client = Client::new();
    // More than one call takes of the other queue.
    for _ in 0..5 {
        let message = client.message(2, 1, &0_u64.to_ne_bytes());
        client.driver.post(HIPRIO_QUEUE, &message, 0x3_f000);
    }
    client.post_forget(1);
    let message = client.message(message::opcode::STATFS, 1, &[]);
    client.driver.post(REQUEST_QUEUE, &message, 4096);
    client.driver.notify(REQUEST_QUEUE).unwrap();
    assert_eq!(client.driver.postponed, [HIPRIO_QUEUE, REQUEST_QUEUE]);
    assert!(client.answer().is_none());
    client.driver.notify(REQUEST_QUEUE).unwrap();
    assert!(client.answer().is_some());
}

#[test]
fn what_was_forgotten_before_a_request_for_room_is_gone_when_it_is_served() {
    let mut client = Client::new();
    std::fs::write(client.path("file"), "").unwrap();
    let inode = client.lookup("file").unwrap().nodeid;
    assert!(client.call(FUSE_GETATTR, inode, &[0; 16]).is_ok());
    client.post_forget(inode);
    client.call(message::opcode::STATFS, 1, &[]).unwrap();
    let answer = client.call(FUSE_GETATTR, inode, &[0; 16]);
    assert_eq!(answer, Err(libc::EBADF));
}

#[test]
fn the_number_of_kept_requests_is_limited() {
    let mut deferred = Deferred::new().unwrap();
    let origin = Origin {
        queue: REQUEST_QUEUE,
        head: 0,
        unique: 0,
    };
    let tickets: Vec<_> = (0..MAX_KEPT)
        .map(|_| deferred.keep(origin).unwrap())
        .collect();
    assert!(deferred.keep(origin).is_none());
    drop(tickets);
    assert_eq!(deferred.take_replies().len(), MAX_KEPT);
    assert!(deferred.keep(origin).is_some());
}

#[test]
fn the_guest_is_told_of_changes_by_others_until_it_unmounts() {
    let mut client = Client::new();
    let watch = |client: &mut Client, what: u64| {
        client.call(message::opcode::WATCH, 1, &what.to_ne_bytes())
    };
    watch(&mut client, 1).unwrap();
    let waiting = client.send(message::opcode::EVENTS, 1, &[]);
    assert_eq!(client.answer(), None);
    let status = std::process::Command::new("touch")
        .arg(client.path("file"))
        .status();
    assert!(status.unwrap().success());
    client
        .driver
        .call(|fs, io| fs.process_host_event(CHANGES, Readiness::READABLE, io))
        .unwrap();
    let (answered, answer) = client.wait();
    assert_eq!(answered, waiting);
    let answer = answer.unwrap();
    assert_eq!(&answer[..8], 1_u64.to_le_bytes());
    assert_eq!(&answer[8..12], libc::IN_CREATE.to_le_bytes());
    assert_eq!(&answer[16..32], b"\x04\0\0\0file\0\0\0\0\0\0\0\0");
    // The guest's driver waits for every request before it unmounts.
    let waiting = client.send(message::opcode::EVENTS, 1, &[]);
    watch(&mut client, 2).unwrap();
    assert_eq!(client.wait(), (waiting, Err(libc::ENOTCONN)));
}

/// FALLOCATE, which could fill the disk of whoever runs the tests.
const FUSE_FALLOCATE: u32 = 43;

/// Bytes without the two that lead out of a directory: outside the jail they would reach the host.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| match byte {
        b'/' | b'.' => b'_',
        other => other,
    });
    // Numbers of inodes and handles that exist, flags that are few, then anything.
    let numbers = proptest::collection::vec(prop_oneof![0_u64..4, any::<u64>()], 0..4);
    let plain = |number: u64| {
        number
            .to_ne_bytes()
            .map(|b| if b == b'/' || b == b'.' { 0 } else { b })
    };
    (numbers, proptest::collection::vec(byte, 0..80)).prop_map(move |(numbers, rest)| {
        let numbers = numbers.into_iter().flat_map(plain);
        numbers.chain(rest).collect()
    })
}

#[test]
fn an_offset_that_no_file_has_is_an_error() {
    let mut guest = Client::new();
    std::fs::write(guest.path("file"), "text").unwrap();
    let inode = guest.lookup("file").unwrap().nodeid;
    let handle = guest.open(inode, libc::O_RDWR);
    for operation in [message::opcode::READ, message::opcode::WRITE] {
        for offset in [i64::MAX as u64, 1 << 63, u64::MAX] {
            let numbers = [handle, offset, 4, 0, 0];
            let body = numbers.map(u64::to_ne_bytes).concat();
            let answer = guest.call(operation, inode, &[&body[..], b"more"].concat());
            assert_eq!(answer, Err(libc::EINVAL), "{operation} at {offset}");
        }
    }
    assert_eq!(std::fs::read(guest.path("file")).unwrap(), b"text");
}

#[test]
fn an_answer_without_room_for_its_header_is_not_written() {
    let mut guest = Client::new();
    for operation in 1..60 {
        for room in [0, 1, 15] {
            if guest
                .try_send_with_room(operation, 1, &[0; 80], room)
                .is_err()
            {
                guest.driver.call(|fs, io| fs.reset(io.host));
            }
            while let Some(answer) = guest.driver.response(REQUEST_QUEUE) {
                assert_eq!(answer, b"", "{operation} with room for {room}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_message_makes_the_device_panic_or_wait(
        messages in proptest::collection::vec((1..60_u32, 0..4_u64, body()), 1..40),
    ) {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        guest.open(inode, libc::O_RDWR);
        for (operation, nodeid, body) in messages {
            if operation == FUSE_FALLOCATE {
                continue;
            }
            // A malformed message is the end of the device until the driver resets it.
            if guest.try_send(operation, nodeid, &body).is_err() {
                guest.driver.call(|fs, io| fs.reset(io.host));
            }
            while guest.driver.response(REQUEST_QUEUE).is_some() {}
        }
    }
}

#[test]
fn a_name_with_a_slash_is_refused_by_every_operation() {
    let mut client = Client::new();
    std::fs::create_dir(client.path("dir")).unwrap();
    std::fs::write(client.path("file"), "kept").unwrap();
    let dir = client.lookup("dir").unwrap().nodeid;
    let file = client.lookup("file").unwrap().nodeid;
    let name = b"../file\0".as_slice();
    let new = b"../new\0".as_slice();
    let node = file.to_ne_bytes();
    let requests: [(u32, u64, Vec<u8>); 10] = [
        (1, dir, name.to_vec()),               // LOOKUP
        (6, dir, [new, b"target\0"].concat()), // SYMLINK
        (8, dir, [&[0; 16], new].concat()),    // MKNOD
        (9, dir, [&[0; 8], new].concat()),     // MKDIR
        (10, dir, name.to_vec()),              // UNLINK
        (11, dir, name.to_vec()),              // RMDIR
        (
            12,
            1,
            [&1_u64.to_ne_bytes(), b"dir/../file\0".as_slice(), b"n\0"].concat(),
        ), // RENAME
        (
            12,
            1,
            [&1_u64.to_ne_bytes(), b"file\0".as_slice(), b"dir/n\0"].concat(),
        ),
        (13, dir, [&node, new].concat()),    // LINK
        (35, dir, [&[0; 16], new].concat()), // CREATE
    ];
    for (opcode, inode, body) in requests {
        let answer = client.call(opcode, inode, &body);
        assert_eq!(answer, Err(libc::EINVAL), "operation {opcode}");
    }
    let kept = std::fs::read_to_string(client.path("file")).unwrap();
    assert_eq!(kept, "kept");
    assert!(!client.path("new").exists());
}
