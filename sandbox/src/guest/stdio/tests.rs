use super::*;
use std::fs::File;
use std::io::Read;

#[test]
fn only_dev_null_is_null() {
    assert!(is_null(&File::open("/dev/null").unwrap().into()));
    assert!(!is_null(&File::open("/dev/zero").unwrap().into()));
    assert!(!is_null(&tempfile::tempfile().unwrap().into()));
}

#[test]
fn the_end_of_input_reaches_the_guest_after_the_data() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (read, mut write) = io::pipe().unwrap();
    let thread = thread::spawn(move || copy_to_guest(&read.into(), &ours));
    write.write_all(b"hello").unwrap();
    drop(write);
    let mut received = String::new();
    theirs.read_to_string(&mut received).unwrap();
    assert_eq!(received, "hello");
    thread.join().unwrap();
}

#[test]
fn the_guest_gets_epipe_when_the_host_stops_reading() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (read, write) = io::pipe().unwrap();
    drop(read);
    let thread = thread::spawn(move || copy_from_guest(&ours, &write.into()));
    theirs.write_all(b"nobody reads this").unwrap();
    thread.join().unwrap();
    assert_eq!(
        theirs.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[test]
fn a_nonblocking_descriptor_is_polled() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (host, guest) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let thread = thread::spawn(move || copy_to_guest(&host.into(), &ours));
    thread::sleep(Duration::from_millis(20));
    (&guest).write_all(b"late").unwrap();
    drop(guest);
    let mut received = String::new();
    theirs.read_to_string(&mut received).unwrap();
    assert_eq!(received, "late");
    thread.join().unwrap();
}

/// A relay of one output, and its ends.
fn relay() -> (Relay, UnixStream, io::PipeReader) {
    let (ours, guest) = UnixStream::pair().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let mut relay = Relay::default();
    relay.spawn_output("output", ours, writer.into()).unwrap();
    (relay, guest, reader)
}

#[tokio::test]
async fn a_guest_that_keeps_a_stream_of_an_ended_container_open_is_not_waited_for() {
    let (relay, mut guest, mut reader) = relay();
    guest.write_all(b"the last words").unwrap();
    relay.settled_within(Duration::from_millis(200)).await;
    let mut words = String::new();
    reader.read_to_string(&mut words).unwrap();
    assert_eq!(words, "the last words");
    assert!(guest.write(b"and more").is_err());
}

#[tokio::test]
async fn a_flood_after_the_end_of_a_container_is_cut() {
    let (relay, mut guest, mut reader) = relay();
    let flood = thread::spawn(move || while guest.write_all(&[0; 4096]).is_ok() {});
    let reader = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    relay.settled_within(Duration::from_millis(200)).await;
    flood.join().unwrap();
    reader.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_the_output() {
    const LENGTH: usize = 1 << 20;
    let (relay, mut guest, mut reader) = relay();
    let guest = thread::spawn(move || guest.write_all(&[0; LENGTH]).unwrap());
    let settled = relay.settled_within(Duration::from_millis(200));
    let mut settled = std::pin::pin!(settled);
    let early = timeout(Duration::from_secs(1), &mut settled).await;
    assert!(early.is_err(), "nobody has read it");
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all.len()
    });
    settled.await;
    guest.join().unwrap();
    assert_eq!(reader.join().unwrap(), LENGTH);
}
