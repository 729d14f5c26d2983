use super::*;
use crate::virtio::fake_driver::FakeDriver;
use vm_memory::Bytes;

#[test]
fn a_page_in_the_balloon_is_freed_and_reads_zero() {
    let mut driver = FakeDriver::new(Balloon::default());
    let page = GuestAddress(16 << 20);
    driver.memory().write_obj(7_u64, page).unwrap();
    let pfn = (page.0 >> PAGE_SHIFT) as u32;
    driver
        .request(queue::INFLATE, &pfn.to_le_bytes(), 0)
        .unwrap();
    assert_eq!(driver.memory().read_obj::<u64>(page).unwrap(), 0);
}

#[test]
fn a_page_outside_memory_is_an_error() {
    let mut driver = FakeDriver::new(Balloon::default());
    let result = driver.request(queue::INFLATE, &u32::MAX.to_le_bytes(), 0);
    assert!(matches!(
        result,
        Err(DeviceError::Queue {
            source: ChainError::Buffer,
            ..
        })
    ));
}

#[test]
fn a_request_lists_no_more_pages_than_a_thread_frees_at_once() {
    let mut driver = FakeDriver::new(Balloon::default());
    let pages = [0; MAX_PAGES * PFN_BYTES + 1];
    let most = driver.request(queue::INFLATE, &pages[1..], 0);
    assert!(most.is_ok(), "{most:?}");
    let more = driver.request(queue::INFLATE, &pages, 0);
    assert!(matches!(
        more,
        Err(DeviceError::Queue {
            source: ChainError::Long(_),
            ..
        })
    ));
}

#[test]
fn the_balloon_has_its_size_when_all_pages_are_in_it_or_out() {
    let target = Target::default();
    let mut driver = FakeDriver::new(Balloon::new(target.clone()));
    target.set_mib(1);
    let pages: Vec<u8> = (4096..4096 + 256_u32).flat_map(u32::to_le_bytes).collect();
    assert!(!target.is_reached());
    driver.request(queue::INFLATE, &pages, 0).unwrap();
    assert!(target.is_reached());
    target.set_mib(0);
    assert!(!target.is_reached());
    driver.request(queue::DEFLATE, &pages, 0).unwrap();
    assert!(target.is_reached());
}

#[test]
fn the_driver_can_only_write_the_size_that_it_reports() {
    let target = Target::default();
    let mut balloon = Balloon::new(target.clone());
    target.set_mib(1);
    balloon.write_config(0, &[9; 4]);
    balloon.write_config(CONFIG_ACTUAL, &5_u32.to_le_bytes());
    balloon.write_config(CONFIG_ACTUAL + 2, &[9; 4]);
    let mut space = [0; CONFIG_BYTES];
    balloon.read_config(0, &mut space);
    assert_eq!(space, [0, 1, 0, 0, 5, 0, 0, 0]);
}

#[test]
fn a_restored_balloon_has_the_pages_that_were_in_it() {
    let mut driver = FakeDriver::new(Balloon::default());
    let pages: Vec<u8> = (0..3_u32).flat_map(u32::to_le_bytes).collect();
    driver.request(queue::INFLATE, &pages, 0).unwrap();
    let state = driver.call(|device, io| device.save(io)).unwrap();
    let target = Target::default();
    let mut restored = FakeDriver::new(Balloon::new(target.clone()));
    restored
        .call(|device, io| device.restore(&state, io))
        .unwrap();
    target.0.wanted.store(3, Ordering::Release);
    assert!(target.is_reached());
    for wrong in [&state[1..], b"12345"] {
        let refused = restored.call(|device, io| device.restore(wrong, io));
        assert!(refused.is_err());
    }
}
