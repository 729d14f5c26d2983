//! Streams of machines that are saved and restored.

use super::*;

/// The device of a restored machine, with listeners of its own.
fn restored(state: &[u8], port: u32) -> (Guest, Arc<EventFd>) {
    let mut guest = Guest::new();
    let path = guest.path.with_extension("again");
    let listener = UnixListener::bind(&path).unwrap();
    let drop = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let device = Vsock::of_checkpoint(vec![(port, listener)], Arc::clone(&drop));
    (guest.driver.device, guest.path) = (device.unwrap(), path);
    let taken = guest.driver.call(|device, io| device.restore(state, io));
    taken.unwrap();
    (guest, drop)
}

/// A stream with an id, which the guest has accepted and heard of, and its host port.
fn with_id(id: [u8; 8]) -> (Guest, UnixStream, u32) {
    let (mut guest, _) = restored(&ready_state(), STREAM_PORT);
    let mut stream = guest.connect();
    guest.wake();
    assert!(guest.receive().is_none(), "the id has not come");
    stream.write_all(&id).unwrap();
    guest.wake();
    let request = guest.receive().unwrap().0;
    assert_eq!((request.op(), request.dst()), (op::REQUEST, STREAM_PORT));
    let host_port = request.src();
    guest.send(host_port, STREAM_PORT, op::RESPONSE, 0, &[]);
    assert_eq!(guest.receive().unwrap().1, id);
    (guest, stream, host_port)
}

fn ready_state() -> Vec<u8> {
    save(&mut Guest::ready()).unwrap()
}

#[test]
fn a_stream_goes_on_in_a_restored_machine_when_a_program_begins_with_its_id() {
    let (mut guest, mut stream, host_port) = with_id(*b"stream 7");
    stream.write_all(b"not read").unwrap();
    let state = save(&mut guest).unwrap();
    // What was taken for the state is not lost for the guest that goes on.
    guest.wake();
    assert_eq!(guest.receive().unwrap().1, b"not read");

    let (mut guest, _) = restored(&state, STREAM_PORT);
    guest.send(host_port, STREAM_PORT, op::RW, 0, b"early");
    let mut stranger = guest.connect();
    stranger.write_all(b"stream 8").unwrap();
    let mut claimer = guest.connect();
    claimer.write_all(b"stream 7 and more").unwrap();
    for _accepted_then_identified in 0..2 {
        guest.wake();
    }
    let mut received = [0; 100];
    let length = claimer.read(&mut received).unwrap();
    assert_eq!(&received[..length], b"early");
    let mut to_guest = Vec::new();
    let mut new_stream = None;
    while let Some((header, data)) = guest.receive() {
        match (header.op(), header.src() == host_port) {
            (op::RW, true) => to_guest.extend(data),
            (op::REQUEST, false) => new_stream = Some(header.src()),
            other => panic!("{other:?}"),
        }
        guest.wake();
    }
    assert_eq!(to_guest, b"not read and more");
    assert_ne!(new_stream.unwrap(), host_port);
    guest.send(host_port, STREAM_PORT, op::RW, 0, b"late");
    let length = claimer.read(&mut received).unwrap();
    assert_eq!(&received[..length], b"late");
}

#[test]
fn output_that_the_host_has_not_read_is_saved_with_its_end() {
    let (mut guest, mut stream, host_port) = with_id(*b"stream 7");
    stream.set_nonblocking(false).unwrap();
    let block = [7; 4000];
    let mut sent = 0;
    while guest.driver.device.connections[&host_port].backlog() == 0 {
        guest.send(host_port, STREAM_PORT, op::RW, 0, &block);
        sent += block.len();
    }
    guest.send(host_port, STREAM_PORT, op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    let state = save(&mut guest).unwrap();
    drop(guest);
    let mut before = Vec::new();
    stream.read_to_end(&mut before).unwrap();

    let (mut guest, _) = restored(&state, STREAM_PORT);
    let mut claimer = guest.connect();
    claimer.write_all(b"stream 7").unwrap();
    for _accepted_then_identified in 0..2 {
        guest.wake();
    }
    claimer.set_nonblocking(false).unwrap();
    let mut after = Vec::new();
    claimer.read_to_end(&mut after).unwrap();
    assert_eq!(before.len() + after.len(), sent, "none lost, none doubled");
}

#[test]
fn streams_that_nobody_claims_are_reset_when_the_host_says_so() {
    let (mut guest, _stream, host_port) = with_id(*b"stream 7");
    let state = save(&mut guest).unwrap();
    let (mut guest, drop) = restored(&state, STREAM_PORT);
    drop.write(1).unwrap();
    guest.wake();
    let reset = guest.receive().unwrap().0;
    assert_eq!((reset.op(), reset.src()), (op::RST, host_port));
    assert!(guest.driver.device.connections.is_empty());
}

#[test]
fn a_damaged_state_of_streams_is_refused_or_does_no_harm() {
    let (mut guest, mut stream, _) = with_id(*b"stream 7");
    stream.write_all(b"not read").unwrap();
    let state = save(&mut guest).unwrap();
    for index in 0..state.len() {
        for bit in [1, 0x80] {
            let mut damaged = state.clone();
            damaged[index] ^= bit;
            let mut guest = Guest::new();
            let restored = guest.driver.call(|device, io| device.restore(&damaged, io));
            if restored.is_ok() {
                while guest.receive().is_some() {}
                let _ = save(&mut guest);
            }
        }
        let mut guest = Guest::new();
        let cut = &state[..index];
        let restored = guest.driver.call(|device, io| device.restore(cut, io));
        assert!(restored.is_err(), "cut at {index}");
    }
}
