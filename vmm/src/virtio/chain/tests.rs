use super::*;
use crate::virtio::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use crate::virtio::fake_driver::FakeDriver;
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::Bytes;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const BUFFER: u64 = 0x40_0000;

/// Responds to each request with the bytes that came with it.
struct Echo;

impl VirtioDevice for Echo {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: 42,
            queue_sizes: &[16],
            features: 0,
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        io.drain(index, |mut chain| {
            let mut bytes = vec![0; chain.readable.len()];
            chain.readable.read(&mut bytes);
            Ok(chain.writable.write(&bytes) as u32)
        })
        .map_err(|source| DeviceError::Queue {
            device: "echo",
            queue: index,
            source,
        })
    }
}

fn error_of(descriptors: &[Descriptor]) -> ChainError {
    let mut driver = FakeDriver::new(Echo);
    driver.publish(0, 0, descriptors);
    match driver.notify(0) {
        Err(DeviceError::Queue { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_served_in_order() {
    let mut driver = FakeDriver::new(Echo);
    for text in [b"one", b"two"] {
        driver.post(0, text, 8);
    }
    driver.notify(0).unwrap();
    assert_eq!(driver.response(0).unwrap(), b"one");
    assert_eq!(driver.response(0).unwrap(), b"two");
    assert_eq!(driver.response(0), None);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut driver = FakeDriver::new(Echo);
    driver
        .memory()
        .write_slice(b"hello", GuestAddress(BUFFER))
        .unwrap();
    let table = GuestAddress(BUFFER + 0x1000);
    driver
        .memory()
        .write_obj(Descriptor::new(BUFFER, 5, NEXT, 1), table)
        .unwrap();
    let answer = Descriptor::new(BUFFER + 0x100, 5, WRITE, 0);
    driver
        .memory()
        .write_obj(answer, GuestAddress(table.0 + 16))
        .unwrap();
    driver.publish(0, 3, &[Descriptor::new(table.0, 32, INDIRECT, 0)]);
    driver.notify(0).unwrap();
    let mut bytes = [0; 5];
    driver
        .memory()
        .read_slice(&mut bytes, GuestAddress(BUFFER + 0x100))
        .unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn a_loop_of_descriptors_is_an_error() {
    let descriptors = [
        Descriptor::new(BUFFER, 1, NEXT, 1),
        Descriptor::new(BUFFER, 1, NEXT, 0),
    ];
    assert!(matches!(error_of(&descriptors), ChainError::Endless));
}

#[test]
fn a_next_beyond_the_table_is_an_error() {
    let beyond = [Descriptor::new(BUFFER, 1, NEXT, 16)];
    assert!(matches!(error_of(&beyond), ChainError::Index(16)));
}

#[test]
fn a_buffer_beyond_memory_is_an_error() {
    for (address, length) in [(u64::MAX - 4, 8), (32 << 20, 1), ((32 << 20) - 4, 8)] {
        let buffer = [Descriptor::new(address, length, 0, 0)];
        assert!(
            matches!(error_of(&buffer), ChainError::Buffer),
            "{address:#x}"
        );
    }
}

#[test]
fn readable_after_writable_is_an_error() {
    let order = [
        Descriptor::new(BUFFER, 1, NEXT | WRITE, 1),
        Descriptor::new(BUFFER, 1, 0, 0),
    ];
    assert!(matches!(error_of(&order), ChainError::Order));
}

#[test]
fn malformed_indirect_tables_are_errors() {
    for (length, flags) in [
        (0, INDIRECT),
        (17, INDIRECT),
        (16, INDIRECT | NEXT),
        (16, INDIRECT | WRITE),
    ] {
        let descriptor = [Descriptor::new(BUFFER, length, flags, 0)];
        assert!(
            matches!(error_of(&descriptor), ChainError::Indirect),
            "{length} {flags}"
        );
    }
}

#[test]
fn an_indirect_table_within_another_is_an_error() {
    let mut driver = FakeDriver::new(Echo);
    let inner = Descriptor::new(BUFFER, 16, INDIRECT, 0);
    driver
        .memory()
        .write_obj(inner, GuestAddress(BUFFER))
        .unwrap();
    driver.publish(0, 0, &[Descriptor::new(BUFFER, 16, INDIRECT, 0)]);
    let error = driver.notify(0).unwrap_err();
    assert!(matches!(
        error,
        DeviceError::Queue {
            source: ChainError::Indirect,
            ..
        }
    ));
}

#[test]
fn an_available_ring_that_runs_ahead_of_itself_is_an_error() {
    let mut driver = FakeDriver::new(Echo);
    for _ in 0..17 {
        driver.publish(0, 0, &[Descriptor::new(BUFFER, 1, 0, 0)]);
    }
    let error = driver.notify(0).unwrap_err();
    assert!(matches!(
        error,
        DeviceError::Queue {
            source: ChainError::Ring(_),
            ..
        }
    ));
}

proptest::proptest! {
    #[test]
    fn no_descriptors_make_a_device_panic(
        raw in proptest::collection::vec((0..u64::MAX, 0..u32::MAX, 0..8_u16, 0..20_u16), 1..16),
        near in proptest::bool::ANY,
    ) {
        let descriptors: Vec<_> = raw
            .iter()
            .map(|&(address, length, flags, next)| {
                let (address, length) =
                    if near { (address % (40 << 20), length % 70000) } else { (address, length) };
                Descriptor::new(address, length, flags, next)
            })
            .collect();
        let mut driver = FakeDriver::new(Echo);
        driver.publish(0, 0, &descriptors);
        let _ = driver.notify(0);
    }

    #[test]
    fn splitting_a_buffer_keeps_every_byte(cut in 0..100_usize) {
        let memory = crate::memory::map(2).unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        let mut whole = Buffers::default();
        for (start, length) in [(0, 10), (10, 0), (10, 40), (50, 50)] {
            whole.segments.push(memory.get_slice(GuestAddress(start), length).unwrap());
        }
        let mut front = whole.split_to(cut).unwrap();
        let (mut a, mut b) = (vec![0; cut], vec![0; 100 - cut]);
        proptest::prop_assert_eq!((front.read(&mut a), whole.read(&mut b)), (cut, 100 - cut));
        proptest::prop_assert_eq!([a, b].concat(), bytes);
    }
}
