use super::*;
use crate::virtio::fake_driver::FakeDriver;
use std::io::Write;
use std::os::fd::OwnedFd;

use rvm_protocol::vmm::{Rate, TokenBucket};

// A pair of datagram sockets replaces the TAP: like a TAP it preserves packet boundaries. `start`,
// whose ioctls need a TAP, is not called.
fn net() -> (FakeDriver<Net>, File) {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let device = Net::new(File::from(OwnedFd::from(ours)), [0; 6], &Rates::default()).unwrap();
    (
        FakeDriver::without_start(device),
        File::from(OwnedFd::from(theirs)),
    )
}

fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..bytes).map(|index| index as u8));
    packet
}

fn notify_readable(driver: &mut FakeDriver<Net>) {
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
    notify_readable(&mut driver);
    assert_eq!(driver.response(queue::RX), None);
    driver.post(queue::RX, &[], 2048);
    driver.notify(queue::RX).unwrap();
    let received = driver.response(queue::RX).unwrap();
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
    notify_readable(&mut driver);
    assert_eq!(driver.response(queue::RX), None, "two buffers are too few");
    driver.post(queue::RX, &[], 2048);
    driver.notify(queue::RX).unwrap();
    let parts: Vec<_> = (0..3)
        .map(|_| driver.response(queue::RX).unwrap())
        .collect();
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
    notify_readable(&mut driver);
    for bytes in [60, 70, 80] {
        assert_eq!(driver.response(queue::RX).unwrap().len(), HEADER + bytes);
    }
}

#[test]
fn an_offload_is_used_only_with_those_that_it_requires() {
    use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6};
    let tso4 = feature::GUEST_CSUM | feature::GUEST_TSO4;
    for (features, flags) in [
        (0, 0),
        (feature::GUEST_TSO4 | feature::GUEST_TSO6, 0),
        (feature::GUEST_CSUM, TUN_F_CSUM),
        (feature::GUEST_CSUM | feature::GUEST_ECN, TUN_F_CSUM),
        (tso4, TUN_F_CSUM | TUN_F_TSO4),
        (
            tso4 | feature::GUEST_ECN,
            TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN,
        ),
        (
            tso4 | feature::GUEST_TSO6,
            TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
        ),
    ] {
        assert_eq!(offloads(features), flags, "{features:#x}");
    }
}

/// Tests with a real TAP, in a network namespace of the calling thread's own.
mod tap {
    use super::*;
    use std::net::UdpSocket;
    use std::process::Command;

    const GUEST: [u8; 4] = [10, 0, 0, 2];
    const HOST: [u8; 4] = [10, 0, 0, 1];
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// Calls `test` on a thread with a TAP whose address is 10.0.0.1, and 10.0.0.2 behind it, and a
    /// driver that has accepted these features.
    fn with_tap(features: u64, test: impl FnOnce(FakeDriver<Net>) + Send + 'static) {
        let run = move || {
            unshare_network();
            let tap = open_tap();
            // Otherwise the kernel would send multicast listener reports.
            std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
            for line in [
                "link set tap0 address 02:00:00:00:00:01 up",
                "addr add 10.0.0.1/24 dev tap0",
                "neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0",
            ] {
                let status = Command::new("ip").args(line.split(' ')).status().unwrap();
                assert!(status.success(), "ip {line}");
            }
            let mut driver =
                FakeDriver::without_start(Net::new(tap, MAC, &Rates::default()).unwrap());
            driver.call(|net, io| net.start(features, io)).unwrap();
            test(driver);
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
    fn unshare_network() {
        // SAFETY: only this thread's later sockets are concerned.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    }

    #[expect(unsafe_code, reason = "ioctl")]
    fn open_tap() -> File {
        use std::os::unix::fs::OpenOptionsExt;
        let tap = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        let size = HEADER as libc::c_int;
        // SAFETY: the requests take an ifreq and an int, which live across the calls.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
                *to = *from as libc::c_char;
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            assert_eq!(
                libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
                0
            );
            assert_eq!(
                libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size),
                0
            );
        }
        tap
    }

    /// The next packet to the guest.
    fn received(driver: &mut FakeDriver<Net>) -> Vec<u8> {
        driver.post(queue::RX, &[], 2048);
        loop {
            notify_readable(driver);
            if let Some(packet) = driver.response(queue::RX) {
                return packet;
            }
        }
    }

    /// A UDP packet from the guest. Its checksum covers only the pseudo header; the receiver
    /// completes it.
    fn udp(payload: &[u8]) -> Vec<u8> {
        let length = 8 + payload.len() as u16;
        let mut header = vec![0; HEADER];
        // VIRTIO_NET_HDR_F_NEEDS_CSUM, from the UDP header on, into its bytes 6 and 7.
        header[0] = 1;
        header[6..8].copy_from_slice(&34_u16.to_le_bytes());
        header[8..10].copy_from_slice(&6_u16.to_le_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((20 + length).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(GUEST);
        ip.extend(HOST);
        let checksum = !sum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let pseudo = [&GUEST[..], &HOST, &[0, 17], &length.to_be_bytes()].concat();
        let mut packet = [header, vec![2, 0, 0, 0, 0, 1], MAC.to_vec(), vec![8, 0], ip].concat();
        packet.extend(7000_u16.to_be_bytes());
        packet.extend(7001_u16.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend(sum(&pseudo).to_be_bytes());
        packet.extend(payload);
        packet
    }

    /// The ones' complement sum of RFC 1071.
    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn a_checksum_that_the_guest_leaves_out_is_filled_in() {
        with_tap(feature::CSUM, |mut driver| {
            let socket = UdpSocket::bind("10.0.0.1:7001").unwrap();
            driver
                .request(queue::TX, &udp(b"from the guest"), 0)
                .unwrap();
            let mut payload = [0; 100];
            let length = socket.recv(&mut payload).unwrap();
            assert_eq!(payload[..length], *b"from the guest");
        });
    }

    #[test]
    fn the_guest_gets_packets_without_checksums_only_if_it_accepts_them() {
        for (features, unfinished) in [(feature::GUEST_CSUM, true), (0, false)] {
            with_tap(features, move |mut driver| {
                let socket = UdpSocket::bind("10.0.0.1:7001").unwrap();
                socket.send_to(b"from the host!", "10.0.0.2:7000").unwrap();
                let packet = received(&mut driver);
                assert_eq!(packet[0] & 1 != 0, unfinished, "NEEDS_CSUM");
                let datagram = &packet[HEADER + 34..];
                let length = (datagram.len() as u16).to_be_bytes();
                let pseudo = [&GUEST[..], &HOST, &[0, 17], &length].concat();
                let whole = sum(&[&pseudo, datagram].concat());
                assert_eq!(whole == 0xffff, !unfinished, "a finished checksum adds up");
            });
        }
    }

    #[test]
    fn large_segments_reach_the_guest_whole_only_if_it_accepts_them() {
        use std::io::Write;
        let tso = feature::GUEST_CSUM | feature::GUEST_TSO4;
        for (features, whole) in [(tso, true), (feature::GUEST_CSUM, false)] {
            with_tap(features, move |mut driver| {
                // A connection to a guest whose packets the test makes.
                let connect = std::thread::spawn(|| std::net::TcpStream::connect("10.0.0.2:80"));
                let syn = received(&mut driver);
                driver.request(queue::TX, &syn_ack(&syn), 0).unwrap();
                let mut stream = connect.join().unwrap().unwrap();
                let _ack = received(&mut driver);
                stream.write_all(&[7; 20_000]).unwrap();
                // Room for one segment each; on a slow machine the kernel puts no more than two in
                // one.
                for _ in 0..7 {
                    driver.post(queue::RX, &[], 2048);
                }
                notify_readable(&mut driver);
                let first = driver.response(queue::RX).unwrap();
                let parts =
                    u16::from_le_bytes([first[HEADER_NUM_BUFFERS], first[HEADER_NUM_BUFFERS + 1]]);
                // VIRTIO_NET_HDR_GSO_TCPV4
                assert_eq!((first[1] == 1, parts > 1), (whole, whole));
            });
        }
    }

    /// The answer to a SYN.
    fn syn_ack(syn: &[u8]) -> Vec<u8> {
        let tcp = &syn[HEADER + 34..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let mut packet = udp(&[0; 16]);
        // From port 80; the length of a TCP header of 24 bytes is that of the UDP packet.
        packet[HEADER + 14 + 9] = 6;
        let ip = HEADER + 14;
        packet[ip + 10..ip + 12].fill(0);
        let checksum = !sum(&packet[ip..ip + 20]);
        packet[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
        packet[8..10].copy_from_slice(&16_u16.to_le_bytes());
        let answer = &mut packet[HEADER + 34..];
        answer.fill(0);
        answer[..2].copy_from_slice(&80_u16.to_be_bytes());
        answer[2..4].copy_from_slice(&tcp[..2]);
        answer[4..8].copy_from_slice(&1_u32.to_be_bytes());
        answer[8..12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
        // 24 bytes of header, SYN and ACK, a window of 65535 bytes, segments of 1460.
        answer[12..16].copy_from_slice(&[0x60, 0x12, 0xff, 0xff]);
        answer[20..24].copy_from_slice(&[2, 4, 5, 0xb4]);
        let pseudo = [&GUEST[..], &HOST, &[0, 6, 0, 24]].concat();
        let partial = sum(&pseudo);
        answer[16..18].copy_from_slice(&partial.to_be_bytes());
        packet
    }
}

/// A card whose rates admit one operation, and the next in an hour.
fn limited(rates: &Rates) -> (FakeDriver<Net>, File) {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
    }
    let device = Net::new(File::from(OwnedFd::from(ours)), [0; 6], rates).unwrap();
    (
        FakeDriver::without_start(device),
        File::from(OwnedFd::from(theirs)),
    )
}

fn one_an_hour() -> Rate {
    Rate {
        bytes: None,
        operations: Some(TokenBucket {
            size: 1,
            refill_ms: 3_600_000,
            burst: 0,
        }),
    }
}

#[test]
fn a_limited_card_sends_what_its_rate_admits_and_receives_all() {
    let net_tx = one_an_hour();
    let (mut driver, mut tap) = limited(&Rates {
        net_tx,
        ..Rates::default()
    });
    for _ in 0..2 {
        driver.post(queue::TX, &packet(100), 0);
        driver.post(queue::RX, &[], 2048);
        tap.write_all(&packet(100)).unwrap();
    }
    driver.notify(queue::TX).unwrap();
    assert_eq!(tap.read(&mut [0; 1000]).unwrap(), packet(100).len());
    assert!(tap.read(&mut [0; 1000]).is_err(), "the other waits");
    notify_readable(&mut driver);
    assert_eq!(std::iter::from_fn(|| driver.response(queue::RX)).count(), 2);
}

#[test]
fn a_limited_card_receives_what_its_rate_admits_and_sends_all() {
    let net_rx = one_an_hour();
    let (mut driver, mut tap) = limited(&Rates {
        net_rx,
        ..Rates::default()
    });
    for _ in 0..2 {
        driver.post(queue::TX, &packet(100), 0);
        driver.post(queue::RX, &[], 2048);
        tap.write_all(&packet(100)).unwrap();
    }
    notify_readable(&mut driver);
    driver.notify(queue::RX).unwrap();
    assert_eq!(std::iter::from_fn(|| driver.response(queue::RX)).count(), 1);
    driver.notify(queue::TX).unwrap();
    for _ in 0..2 {
        assert_eq!(tap.read(&mut [0; 1000]).unwrap(), packet(100).len());
    }
}
