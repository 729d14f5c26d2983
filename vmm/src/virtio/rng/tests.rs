use super::*;
use crate::virtio::fake_driver::FakeDriver;

#[test]
fn a_request_is_filled_with_changing_bytes() {
    let mut driver = FakeDriver::new(Rng);
    let first = driver.request(0, &[], 64).unwrap();
    let second = driver.request(0, &[], 64).unwrap();
    assert_eq!((first.len(), second.len()), (64, 64));
    assert_ne!(first, second);
}

#[test]
fn a_huge_request_is_answered_in_part() {
    let mut driver = FakeDriver::new(Rng);
    assert_eq!(driver.request(0, &[], 1 << 20).unwrap().len(), MAX_REQUEST);
}
