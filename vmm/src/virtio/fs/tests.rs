use super::*;
use crate::virtio::fake_driver::FakeDriver;
use virtiofsd::fuse::{InHeader, OutHeader};
use vm_memory::ByteValued;

fn fs() -> FakeDriver<Fs> {
    let proc_self_fd = File::open("/proc/self/fd").unwrap();
    FakeDriver::new(
        Fs::new(
            ServerResources {
                proc_self_fd,
                max_fds: 1024,
            },
            "tag",
        )
        .unwrap(),
    )
}

const REQUEST_QUEUE: usize = 1;
const FUSE_GETATTR: u32 = 3;

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        unique: 7,
        nodeid: 1,
        ..InHeader::default()
    };
    [header.as_slice(), body].concat()
}

#[test]
fn the_tag_and_one_request_queue_are_announced() {
    let driver = fs();
    let mut config = [0; CONFIG_BYTES];
    driver.device.read_config(0, &mut config);
    assert_eq!(&config[..4], b"tag\0");
    assert_eq!(config[TAG_BYTES..], 1_u32.to_le_bytes());
}

#[test]
fn the_root_directory_has_attributes() {
    let mut driver = fs();
    let response = driver
        .request(REQUEST_QUEUE, &request(FUSE_GETATTR, &[0; 16]), 4096)
        .unwrap();
    let header = OutHeader::from_slice(&response[..size_of::<OutHeader>()]).unwrap();
    assert_eq!((header.error, header.unique), (0, 7));
    assert!(response.len() > size_of::<OutHeader>());
}

#[test]
fn an_unknown_operation_is_refused_and_not_fatal() {
    let mut driver = fs();
    let response = driver
        .request(REQUEST_QUEUE, &request(9999, &[]), 4096)
        .unwrap();
    let header = OutHeader::from_slice(&response).unwrap();
    assert_eq!(header.error, -libc::ENOSYS);
}

#[test]
fn a_message_shorter_than_its_header_breaks_the_device_and_nothing_else() {
    let mut driver = fs();
    let error = driver.request(REQUEST_QUEUE, b"short", 4096).unwrap_err();
    assert!(matches!(error, DeviceError::Protocol { .. }));
}
