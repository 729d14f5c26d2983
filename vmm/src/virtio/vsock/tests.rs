mod restored;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::connection::RECEIVE_BUFFER;
use super::spec::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::fake_driver::FakeDriver;
use vm_memory::ByteValued;

const PORT: u32 = 1024;
const GUEST_BUFFER: u32 = 64 * 1024;

struct Guest {
    driver: FakeDriver<Vsock>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
    fwd_cnt: u32,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let listener = UnixListener::bind(&path).unwrap();
        let driver = FakeDriver::new(Vsock::new(vec![(PORT, listener)]).unwrap());
        let mut guest = Self {
            driver,
            path,
            _dir: dir,
            fwd_cnt: 0,
        };
        for _ in 0..8 {
            guest.driver.post(queue::RX, &[], 4096);
        }
        guest
    }

    fn ready() -> Self {
        let mut guest = Self::new();
        guest.send(READY_PORT, 5000, op::REQUEST, 0, &[]);
        let refusal = guest.receive().unwrap().0;
        assert_eq!((refusal.op(), refusal.dst()), (op::RST, 5000));
        guest
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A host program's stream, accepted by the guest, and its host port.
    fn connected() -> (Self, UnixStream, u32) {
        let mut guest = Self::ready();
        let stream = guest.connect();
        guest.wake();
        let request = guest.receive().unwrap().0;
        assert_eq!((request.op(), request.dst()), (op::REQUEST, PORT));
        let host_port = request.src();
        guest.send(host_port, PORT, op::RESPONSE, 0, &[]);
        (guest, stream, host_port)
    }

    fn send(&mut self, host_port: u32, guest_port: u32, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: u64::from(GUEST_CID),
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: data.len() as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.fwd_cnt,
        };
        let packet = [header.as_slice(), data].concat();
        self.driver.request(queue::TX, &packet, 0).unwrap();
    }

    /// The next packet, and a fresh buffer in its place.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut packet = self.driver.response(queue::RX)?;
        self.driver.post(queue::RX, &[], 4096);
        self.driver.notify(queue::RX).unwrap();
        let data = packet.split_off(size_of::<Header>());
        Some((*Header::from_slice(&packet).unwrap(), data))
    }

    /// Reports every descriptor that the device watches as ready.
    fn wake(&mut self) {
        self.driver.wake().unwrap();
    }

    fn is_watching(&self, stream: &impl AsRawFd) -> bool {
        self.driver.watches.0.contains_key(&stream.as_raw_fd())
    }
}

impl Header {
    fn op(&self) -> u16 {
        self.op
    }
    fn src(&self) -> u32 {
        self.src_port
    }
    fn dst(&self) -> u32 {
        self.dst_port
    }
    fn flags(&self) -> u32 {
        self.flags
    }
}

#[test]
fn no_connection_is_accepted_before_the_guest_is_ready() {
    let mut guest = Guest::new();
    let _stream = guest.connect();
    assert!(guest.driver.watches.0.is_empty());
    guest.send(READY_PORT, 5000, op::REQUEST, 0, &[]);
    assert_eq!(guest.receive().unwrap().0.op(), op::RST);
    guest.wake();
    assert_eq!(guest.receive().unwrap().0.op(), op::REQUEST);
}

#[test]
fn the_guest_cannot_connect_to_the_host() {
    let mut guest = Guest::ready();
    guest.send(22, 5000, op::REQUEST, 0, &[]);
    let reset = guest.receive().unwrap().0;
    assert_eq!((reset.op(), reset.src(), reset.dst()), (op::RST, 22, 5000));
}

#[test]
fn data_passes_in_both_directions() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    stream.write_all(b"to the guest").unwrap();
    guest.wake();
    let (header, data) = guest.receive().unwrap();
    assert_eq!(
        (header.op(), data.as_slice()),
        (op::RW, b"to the guest".as_slice())
    );
    guest.send(host_port, PORT, op::RW, 0, b"to the host");
    let mut received = [0; 100];
    let length = stream.read(&mut received).unwrap();
    assert_eq!(&received[..length], b"to the host");
}

#[test]
fn the_hosts_shutdown_is_sent_after_the_data() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    stream.write_all(b"last data").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    guest.wake();
    assert_eq!(guest.receive().unwrap().1, b"last data");
    let end = guest.receive().unwrap().0;
    assert_eq!((end.op(), end.flags()), (op::SHUTDOWN, SHUTDOWN_SEND));
    // The other direction goes on.
    guest.send(host_port, PORT, op::RW, 0, b"answer");
    assert_eq!(stream.read(&mut [0; 100]).unwrap(), 6);
}

#[test]
fn a_closed_host_socket_shuts_down_both_directions() {
    let (mut guest, stream, _) = Guest::connected();
    drop(stream);
    guest.wake();
    let end = guest.receive().unwrap().0;
    assert_eq!(
        (end.op(), end.flags()),
        (op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE)
    );
}

#[test]
fn the_guests_shutdown_is_passed_on_after_its_data() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    guest.send(host_port, PORT, op::RW, 0, b"bye");
    guest.send(host_port, PORT, op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"bye");
    stream.write_all(b"still open").unwrap();
    guest.wake();
    assert_eq!(guest.receive().unwrap().1, b"still open");
}

/// A shutdown is an event on both ends of a socket: each further one would wake the device again.
#[test]
fn the_guests_shutdown_is_passed_on_once() {
    use rustix::event::{Timespec, epoll};
    let (mut guest, stream, host_port) = Guest::connected();
    let events = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let (data, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
    epoll::add(&events, &stream, data, flags | epoll::EventFlags::ET).unwrap();
    let count = || {
        let mut list = Vec::with_capacity(1);
        let now = Timespec::default();
        epoll::wait(
            &events,
            rustix::buffer::spare_capacity(&mut list),
            Some(&now),
        )
        .unwrap()
    };
    guest.send(host_port, PORT, op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    assert_eq!(count(), 1);
    guest.wake();
    assert_eq!(count(), 0);
}

#[test]
fn a_stream_closed_by_the_guest_is_reset_and_removed() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    guest.send(
        host_port,
        PORT,
        op::SHUTDOWN,
        SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        &[],
    );
    assert_eq!(guest.receive().unwrap().0.op(), op::RST);
    assert!(guest.driver.device.connections.is_empty());
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_refused_stream_is_closed() {
    let mut guest = Guest::ready();
    let mut stream = guest.connect();
    guest.wake();
    let host_port = guest.receive().unwrap().0.src();
    guest.send(host_port, PORT, op::RST, 0, &[]);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

/// Sends until the host program's socket and then the receive buffer are full; returns what was
/// sent.
fn fill(guest: &mut Guest, host_port: u32) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut forwarded = 0;
    loop {
        let window = RECEIVE_BUFFER - (sent.len() as u32 - forwarded);
        let block: Vec<u8> = (0..window.min(32 * 1024))
            .map(|index| (index + sent.len() as u32) as u8)
            .collect();
        if block.is_empty() {
            return sent;
        }
        guest.send(host_port, PORT, op::RW, 0, &block);
        sent.extend(block);
        while let Some((header, _)) = guest.receive() {
            assert_eq!(header.op(), op::CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
        }
    }
}

/// Reads from the host program's socket, and wakes the device while there is nothing to read.
fn read_some(guest: &mut Guest, stream: &mut UnixStream) -> Vec<u8> {
    let mut block = vec![0; 65536];
    loop {
        match stream.read(&mut block) {
            Ok(length) => {
                block.truncate(length);
                return block;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => guest.wake(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_slow_host_program_stalls_the_guest_and_loses_nothing() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    let sent = fill(&mut guest, host_port);
    assert!(
        sent.len() > RECEIVE_BUFFER as usize,
        "the socket took some and the buffer the rest"
    );
    let mut received: Vec<u8> = Vec::new();
    while received.len() < sent.len() {
        received.extend(read_some(&mut guest, &mut stream));
    }
    assert!(received == sent);
    let credit = std::iter::from_fn(|| guest.receive()).last().unwrap().0;
    assert!(
        sent.len() as u32 - credit.fwd_cnt < RECEIVE_BUFFER / 2,
        "the guest may go on"
    );
}

#[test]
fn data_that_waits_for_a_slow_host_program_survives_the_guests_reset() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    let sent = fill(&mut guest, host_port);
    guest.send(
        host_port,
        PORT,
        op::SHUTDOWN,
        SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        &[],
    );
    guest.send(host_port, PORT, op::RST, 0, &[]);
    let mut received = 0;
    loop {
        match read_some(&mut guest, &mut stream).len() {
            0 => break,
            length => received += length,
        }
    }
    assert_eq!(received, sent.len());
    assert!(guest.driver.device.connections.is_empty());
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let (mut guest, _stream, host_port) = Guest::connected();
    fill(&mut guest, host_port);
    // The device tolerates what was forwarded since the last credit update.
    for _ in 0..=RECEIVE_BUFFER / 4 / 0x8000 {
        guest.send(host_port, PORT, op::RW, 0, &[0; 0x8000]);
    }
    assert_eq!(guest.receive().unwrap().0.op(), op::RST);
    assert!(guest.driver.device.connections.is_empty());
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_credit_for() {
    let (mut guest, mut stream, host_port) = Guest::connected();
    let mut written = 0;
    while let Ok(length) = stream.write(&[7; 4096]) {
        written += length;
    }
    assert!(written > GUEST_BUFFER as usize);
    guest.wake();
    let mut received = 0;
    while let Some((_, data)) = guest.receive() {
        received += data.len();
    }
    assert_eq!(received, GUEST_BUFFER as usize);
    guest.fwd_cnt = GUEST_BUFFER;
    guest.send(host_port, PORT, op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.receive().unwrap().0.op(), op::RW);
}

#[test]
fn a_guest_without_buffers_is_served_when_it_provides_some() {
    let mut guest = Guest::ready();
    while guest.driver.response(queue::RX).is_some() {}
    let streams: Vec<_> = (0..20).map(|_| guest.connect()).collect();
    guest.wake();
    let mut ports = std::collections::HashSet::new();
    while let Some((header, _)) = guest.receive() {
        assert_eq!(header.op(), op::REQUEST);
        ports.insert(header.src());
    }
    assert_eq!(ports.len(), streams.len());
}

#[test]
fn packets_of_unknown_streams_cannot_fill_memory() {
    let mut guest = Guest::ready();
    // The guest provides no new buffers, so no reset can be sent.
    for port in 0..1000 {
        guest.send(70_000 + port, 5000, op::RW, 0, b"x");
    }
    assert!(guest.driver.device.resets.len() <= MAX_STRAY_RESETS);
}

#[test]
fn a_packet_shorter_than_its_length_field_breaks_the_device() {
    let mut guest = Guest::ready();
    let header = Header {
        len: 100,
        ..header(1, 2, op::RW)
    };
    assert!(
        guest
            .driver
            .request(queue::TX, header.as_slice(), 0)
            .is_err()
    );
    assert!(guest.driver.request(queue::TX, b"short", 0).is_err());
}

#[test]
fn a_reset_device_closes_its_streams_and_waits_for_the_guest_again() {
    let (mut guest, mut stream, _) = Guest::connected();
    let FakeDriver {
        device, watches, ..
    } = &mut guest.driver;
    device.reset(watches);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(!guest.is_watching(&guest.driver.device.listeners[0].1));
    assert!(!guest.driver.device.ready);
}

fn save(guest: &mut Guest) -> Result<Vec<u8>, Busy> {
    guest.driver.call(|device, io| device.save(io))
}

/// A device of a machine that becomes a template, whose guest has said that it is ready.
fn held() -> (Guest, Arc<HeldRequest>) {
    let request = Arc::new(HeldRequest::default());
    let mut guest = Guest::new();
    guest.driver.device = Vsock::of_template(Arc::clone(&request)).unwrap();
    assert!(save(&mut guest).is_err(), "the guest is not ready yet");
    guest.send(READY_PORT, 5000, op::REQUEST, 0, &[]);
    assert_eq!(request.guest_port(), Some(5000));
    (guest, request)
}

#[test]
fn a_template_s_guest_gets_its_answer_when_it_is_restored() {
    let (mut template, _) = held();
    assert!(template.receive().is_none(), "the request is only noted");
    let state = save(&mut template).unwrap();

    let mut guest = Guest::new();
    guest
        .driver
        .call(|device, io| device.restore(&state, io))
        .unwrap();
    let refusal = guest.receive().unwrap().0;
    assert_eq!((refusal.op(), refusal.dst()), (op::RST, 5000));
    let _stream = guest.connect();
    guest.wake();
    assert_eq!(guest.receive().unwrap().0.op(), op::REQUEST);
}

#[test]
fn a_damaged_state_is_an_error() {
    let mut guest = Guest::new();
    for state in [b"".as_slice(), &[1, 2, 3], &[7]] {
        let restored = guest.driver.call(|device, io| device.restore(state, io));
        assert!(restored.is_err(), "{state:?}");
    }
}
