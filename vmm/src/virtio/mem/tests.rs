use super::*;
use crate::virtio::fake_driver::FakeDriver;
use vm_memory::Bytes;

/// The fake driver's memory has 32 MiB; the upper half takes the region's place.
const START: u64 = 16 << 20;
const REGION: Range<u64> = START..START + 8 * BLOCK;

fn mem(requested_blocks: u64) -> (FakeDriver<Mem>, Sizes) {
    let sizes = Sizes::default();
    sizes.set_usable(6 * BLOCK);
    sizes.request(requested_blocks * BLOCK);
    (FakeDriver::new(Mem::new(REGION, sizes.clone())), sizes)
}

fn request(kind: u16, address: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![0; REQUEST_BYTES];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}

/// The response's type and state.
fn ask(driver: &mut FakeDriver<Mem>, kind: u16, block: u64, blocks: u16) -> (u16, u16) {
    let sent = request(kind, START + block * BLOCK, blocks);
    let response = driver.request(0, &sent, RESPONSE_BYTES).unwrap();
    let number = |at: usize| u16::from_le_bytes([response[at], response[at + 1]]);
    (number(0), number(8))
}

#[test]
fn blocks_are_plugged_up_to_what_the_host_wants() {
    let (mut driver, sizes) = mem(3);
    assert_eq!(ask(&mut driver, request::PLUG, 0, 2).0, response::ACK);
    assert_eq!(ask(&mut driver, request::PLUG, 2, 2).0, response::NACK);
    assert_eq!(ask(&mut driver, request::PLUG, 4, 1).0, response::ACK);
    assert_eq!((sizes.plugged(), sizes.top()), (3 * BLOCK, 5 * BLOCK));
}

#[test]
fn an_unplugged_block_is_freed_and_comes_back_as_zeroes() {
    let (mut driver, sizes) = mem(1);
    ask(&mut driver, request::PLUG, 1, 1);
    let place = GuestAddress(START + BLOCK);
    driver.memory().write_obj(7_u64, place).unwrap();
    sizes.request(0);
    assert_eq!(ask(&mut driver, request::UNPLUG, 1, 1).0, response::ACK);
    assert_eq!(driver.memory().read_obj::<u64>(place).unwrap(), 0);
    assert_eq!((sizes.plugged(), sizes.top()), (0, 0));
}

#[test]
fn the_state_of_a_range_is_returned() {
    let (mut driver, _) = mem(6);
    ask(&mut driver, request::PLUG, 1, 2);
    let mut state = |block, blocks| ask(&mut driver, request::STATE, block, blocks);
    assert_eq!(state(1, 2), (response::ACK, state::PLUGGED));
    assert_eq!(state(3, 3), (response::ACK, state::UNPLUGGED));
    assert_eq!(state(0, 6), (response::ACK, state::MIXED));
}

#[test]
fn blocks_outside_the_region_or_already_in_that_state_are_errors() {
    let (mut driver, sizes) = mem(6);
    ask(&mut driver, request::PLUG, 0, 1);
    for (kind, block, blocks) in [
        (request::PLUG, 0, 1),
        (request::PLUG, 0, 2),
        (request::PLUG, 5, 2),
        (request::PLUG, 7, 1),
        (request::PLUG, 1, 0),
        (request::UNPLUG, 1, 1),
        (request::UNPLUG, 0, 2),
        (request::STATE, 6, u16::MAX),
        (99, 1, 1),
    ] {
        let response = ask(&mut driver, kind, block, blocks);
        assert_eq!(response.0, response::ERROR, "{kind} {block} {blocks}");
    }
    assert_eq!(sizes.plugged(), BLOCK);
}

#[test]
fn addresses_that_overflow_or_are_unaligned_are_errors() {
    let (mut driver, _) = mem(6);
    for address in [
        0,
        START - BLOCK,
        START + 4096,
        u64::MAX - BLOCK + 1,
        u64::MAX,
    ] {
        let sent = request(request::PLUG, address, u16::MAX);
        let response = driver.request(0, &sent, RESPONSE_BYTES).unwrap();
        assert_eq!(response[0], response::ERROR as u8, "{address:#x}");
    }
    let response = driver.request(0, &[0; 3], RESPONSE_BYTES).unwrap();
    assert_eq!(response[0], response::ERROR as u8, "a short request");
}

#[test]
fn everything_is_unplugged_at_once() {
    let (mut driver, sizes) = mem(4);
    ask(&mut driver, request::PLUG, 0, 1);
    ask(&mut driver, request::PLUG, 3, 3);
    assert_eq!(ask(&mut driver, request::UNPLUG_ALL, 0, 0).0, response::ACK);
    assert_eq!((sizes.plugged(), sizes.top()), (0, 0));
    assert_eq!(ask(&mut driver, request::UNPLUG_ALL, 0, 0).0, response::ACK);
}

#[test]
fn the_configuration_has_the_sizes() {
    let (driver, _) = mem(3);
    let mut space = [0; CONFIG_BYTES];
    driver.device.read_config(0, &mut space);
    let field = |index: usize| {
        let bytes = &space[index * 8..index * 8 + 8];
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let fields: Vec<u64> = (0..7).map(field).collect();
    let region = REGION.end - REGION.start;
    assert_eq!(fields, [BLOCK, 0, START, region, 6 * BLOCK, 0, 3 * BLOCK]);
}

#[test]
fn a_restored_device_has_the_blocks_that_were_plugged() {
    let (mut driver, _) = mem(3);
    ask(&mut driver, request::PLUG, 1, 2);
    let state = driver.call(|device, io| device.save(io)).unwrap();
    let (mut restored, sizes) = mem(3);
    restored
        .call(|device, io| device.restore(&state, io))
        .unwrap();
    assert_eq!((sizes.plugged(), sizes.top()), (2 * BLOCK, 3 * BLOCK));
    let found = ask(&mut restored, request::STATE, 1, 2);
    assert_eq!(found, (response::ACK, state::PLUGGED));
    assert_eq!(ask(&mut restored, request::UNPLUG, 1, 2).0, response::ACK);
}

#[test]
fn a_state_of_another_region_or_with_blocks_that_are_no_memory_is_refused() {
    let last = 1_u64 << 6;
    for wrong in [
        vec![],
        vec![0; 7],
        vec![0; 9],
        vec![0; 16],
        last.to_le_bytes().to_vec(),
    ] {
        let (mut driver, _) = mem(3);
        let restored = driver.call(|device, io| device.restore(&wrong, io));
        assert!(restored.is_err(), "{wrong:?}");
    }
}

proptest::proptest! {
    #[test]
    fn never_more_is_plugged_than_the_host_wants(
        requests in proptest::collection::vec((0_u16..4, 0_u64..10, 0_u16..9), 0..40),
        wanted in 0_u64..8,
    ) {
        let (mut driver, sizes) = mem(wanted);
        for (kind, block, blocks) in requests {
            ask(&mut driver, kind, block, blocks);
            proptest::prop_assert!(sizes.plugged() <= wanted * BLOCK);
            proptest::prop_assert!(sizes.plugged() <= sizes.top());
            proptest::prop_assert!(sizes.top() <= 6 * BLOCK);
        }
    }
}
