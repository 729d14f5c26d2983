use super::*;
use crate::virtio::fake::Driver;
use std::io::Write;
use std::os::fd::OwnedFd;

// A packet socket pair takes the place of the TAP: it keeps packets apart as a TAP does. The
// ioctls that only a TAP knows are left out.
fn net() -> (Driver<Net>, File) {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let device = Net {
        tap: File::from(OwnedFd::from(ours)),
        config: [0; CONFIG_BYTES],
        packet: Box::new([0; HEADER + MAX_PACKET]),
        length: 0,
        readable: false,
    };
    (Driver::started(device), File::from(OwnedFd::from(theirs)))
}

fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..bytes).map(|index| index as u8));
    packet
}

fn arrive(driver: &mut Driver<Net>) {
    driver
        .call(|net, io| net.process_host_event(TOKEN_TAP, Readiness::READABLE, io))
        .unwrap();
}

#[test]
fn a_packet_from_the_guest_goes_to_the_tap_as_it_is() {
    let (mut driver, mut tap) = net();
    driver.request(queue::TX, &packet(100), 0).unwrap();
    let mut received = [0; 1000];
    let length = tap.read(&mut received).unwrap();
    assert_eq!(received[..length], packet(100));
}

#[test]
fn a_packet_waits_until_the_guest_has_buffers() {
    let (mut driver, mut tap) = net();
    tap.write_all(&packet(100)).unwrap();
    arrive(&mut driver);
    assert_eq!(driver.answer(queue::RX), None);
    driver.post(queue::RX, &[], 2048);
    driver.ring(queue::RX).unwrap();
    let received = driver.answer(queue::RX).unwrap();
    assert_eq!(received[HEADER..], packet(100)[HEADER..]);
    assert_eq!(received[HEADER_NUM_BUFFERS..HEADER], 1_u16.to_le_bytes());
}

#[test]
fn a_large_packet_is_spread_over_several_buffers() {
    let (mut driver, mut tap) = net();
    tap.write_all(&packet(5000)).unwrap();
    for _ in 0..2 {
        driver.post(queue::RX, &[], 2048);
    }
    arrive(&mut driver);
    assert_eq!(driver.answer(queue::RX), None, "two buffers are too few");
    driver.post(queue::RX, &[], 2048);
    driver.ring(queue::RX).unwrap();
    let parts: Vec<_> = (0..3).map(|_| driver.answer(queue::RX).unwrap()).collect();
    assert_eq!(parts[0][HEADER_NUM_BUFFERS..HEADER], 3_u16.to_le_bytes());
    assert_eq!(parts.concat()[HEADER..], packet(5000)[HEADER..]);
}

#[test]
fn a_packet_without_a_header_or_too_long_is_malformed() {
    for bytes in [1, HEADER, HEADER + MAX_PACKET + 1] {
        let (mut driver, _tap) = net();
        assert!(
            driver.request(queue::TX, &vec![0; bytes], 0).is_err(),
            "{bytes}"
        );
    }
}

#[test]
fn packets_keep_their_order() {
    let (mut driver, mut tap) = net();
    for bytes in [60, 70, 80] {
        tap.write_all(&packet(bytes)).unwrap();
        driver.post(queue::RX, &[], 2048);
    }
    arrive(&mut driver);
    for bytes in [60, 70, 80] {
        assert_eq!(driver.answer(queue::RX).unwrap().len(), HEADER + bytes);
    }
}
