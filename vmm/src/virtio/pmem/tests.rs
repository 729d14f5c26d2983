use super::*;
use crate::virtio::fake_driver::FakeDriver;

const RANGE: Range<u64> = (1 << 33)..(1 << 33) + (2 << 20);

fn device(bytes: u64) -> Pmem {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    Pmem::new(file, bytes, &RANGE)
}

fn driver() -> FakeDriver<Pmem> {
    FakeDriver::new(device(4096))
}

#[test]
fn the_configuration_names_the_addresses() {
    let mut config = [0; CONFIG_BYTES + 4];
    device(4096).read_config(0, &mut config);
    assert_eq!(config[..8], RANGE.start.to_le_bytes());
    assert_eq!(config[8..16], (2_u64 << 20).to_le_bytes());
    assert_eq!(config[16..], [0; 4]);
}

#[test]
fn a_flush_is_done_and_another_request_fails() {
    let mut driver = driver();
    let mut answer = |kind: u32| driver.request(0, &kind.to_le_bytes(), 4).unwrap();
    assert_eq!(answer(FLUSH), result::DONE.to_le_bytes());
    for kind in [1, u32::MAX] {
        assert_eq!(answer(kind), result::FAILED.to_le_bytes());
    }
}

#[test]
fn a_request_that_is_cut_short_needs_a_reset() {
    for (sent, room) in [(&[][..], 4), (&[0; 3], 4), (&[0; 4], 3), (&[0; 4], 0)] {
        let refused = driver().request(0, sent, room);
        assert!(refused.is_err(), "{} and {room} bytes", sent.len());
    }
}

#[test]
fn a_machine_goes_on_with_the_same_file_alone() {
    let mut driver = driver();
    let state = driver.call(|device, io| device.save(io)).unwrap();
    driver.restart();
    driver
        .call(|device, io| device.restore(&state, io))
        .unwrap();
    let longer = FakeDriver::new(device(8192)).call(|device, io| device.restore(&state, io));
    let error = longer.unwrap_err().to_string();
    assert!(error.contains("8192 bytes"), "{error}");
    assert!(driver.call(|device, io| device.restore(&[1], io)).is_err());
}
