use super::log::MAX_LOG;
use super::*;
use crate::virtio::fake_driver::FakeDriver;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

fn console() -> (FakeDriver<Console>, File) {
    let file = tempfile::tempfile().unwrap();
    let log = ConsoleLog::new(file.try_clone().unwrap()).unwrap();
    (
        FakeDriver::new(Console::new(Arc::new(Mutex::new(log)))),
        file,
    )
}

fn contents(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_the_guest_prints_is_in_the_log() {
    let (mut driver, file) = console();
    driver.request(TRANSMIT_QUEUE, b"hello ", 0).unwrap();
    driver.request(TRANSMIT_QUEUE, b"world\n", 0).unwrap();
    assert_eq!(contents(file), b"hello world\n");
}

#[test]
fn the_log_never_grows_past_its_bound_and_keeps_the_end() {
    let (mut driver, file) = console();
    let block = vec![b'x'; 64 * 1024];
    for _ in 0..40 {
        driver.request(TRANSMIT_QUEUE, &block, 0).unwrap();
    }
    driver.request(TRANSMIT_QUEUE, b"the end", 0).unwrap();
    let log = contents(file);
    assert!(log.len() as u64 <= MAX_LOG);
    assert!(log.ends_with(b"the end"));
}

#[test]
fn a_request_prints_no_more_than_a_thread_writes_at_once() {
    let (mut driver, file) = console();
    let text = [vec![b'x'; MAX_REQUEST], b"too much".to_vec()].concat();
    driver.request(TRANSMIT_QUEUE, &text, 0).unwrap();
    driver.request(TRANSMIT_QUEUE, b"next", 0).unwrap();
    let log = contents(file);
    assert_eq!(log.len(), MAX_REQUEST + 4);
    assert!(log.ends_with(b"xnext"));
}
