//! virtio-console: where the guest's kernel and agent write their log, section 5.3 of the
//! specification. Nothing is ever typed into it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::chain::{Buffers, ChainError};
use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

/// The most the log may grow to. A guest that prints without end would otherwise fill the host's
/// disk. When it is reached the log starts over, so that what was said last is always there.
pub const MAX_LOG: u64 = 1 << 20;

/// What is taken from the guest at a time.
const CHUNK: usize = 4096;

mod queue {
    pub const TRANSMIT: usize = 1;
}

/// A log file of bounded size.
#[derive(Debug)]
pub struct ConsoleLog {
    file: File,
    length: u64,
}

impl ConsoleLog {
    /// Writes to `file` from its current position.
    pub fn new(mut file: File) -> io::Result<Self> {
        let length = file.stream_position()?;
        Ok(Self { file, length })
    }

    /// Appends, and starts over where the log would grow past [`MAX_LOG`].
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > MAX_LOG {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.set_len(0)?;
            self.length = 0;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// The device.
#[derive(Debug)]
pub struct Console {
    log: Arc<Mutex<ConsoleLog>>,
}

impl Console {
    /// A console that writes to `log`.
    pub fn new(log: Arc<Mutex<ConsoleLog>>) -> Self {
        Self { log }
    }

    fn print(&self, mut text: Buffers<'_>) -> Result<u32, ChainError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunk = [0; CHUNK];
        loop {
            match text.read(&mut chunk) {
                0 => return Ok(0),
                // A log that cannot be written must not stop the guest.
                bytes => _ = log.append(&chunk[..bytes]),
            }
        }
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::CONSOLE,
            queue_sizes: &[16, 64],
            features: 0,
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if index != queue::TRANSMIT {
            return Ok(());
        }
        io.drain(index, |chain| self.print(chain.readable))
            .map_err(|source| DeviceError::Queue {
                device: "console",
                queue: index,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::Driver;
    use std::io::Read;

    fn console() -> (Driver<Console>, File) {
        let file = tempfile::tempfile().unwrap();
        let log = ConsoleLog::new(file.try_clone().unwrap()).unwrap();
        (Driver::new(Console::new(Arc::new(Mutex::new(log)))), file)
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
        driver.request(queue::TRANSMIT, b"hello ", 0).unwrap();
        driver.request(queue::TRANSMIT, b"world\n", 0).unwrap();
        assert_eq!(contents(file), b"hello world\n");
    }

    #[test]
    fn the_log_never_grows_past_its_bound_and_keeps_the_end() {
        let (mut driver, file) = console();
        let block = vec![b'x'; 64 * 1024];
        for _ in 0..40 {
            driver.request(queue::TRANSMIT, &block, 0).unwrap();
        }
        driver.request(queue::TRANSMIT, b"the end", 0).unwrap();
        let log = contents(file);
        assert!(log.len() as u64 <= MAX_LOG);
        assert!(log.ends_with(b"the end"));
    }
}
