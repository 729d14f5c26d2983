//! virtio-console: the output of the guest's kernel and agent, section 5.3 of the specification.
//! The host never sends input.

mod log;
mod spec;

use std::sync::{Arc, Mutex, PoisonError};

use self::spec::{QUEUE_SIZES, TRANSMIT_QUEUE};
use super::chain::{Buffers, ChainError};
use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

pub use self::log::ConsoleLog;

/// How many bytes are copied from the guest at a time.
const CHUNK: usize = 4096;

/// The most bytes of one request; what follows them is not printed. A guest whose request is all of
/// its memory, some times over, would otherwise keep the thread, and with it the agent's channel;
/// Linux sends a page at a time.
const MAX_REQUEST: usize = 64 * 1024;

#[derive(Debug)]
pub struct Console {
    log: Arc<Mutex<ConsoleLog>>,
}

impl Console {
    /// A console that appends to `log`.
    pub fn new(log: Arc<Mutex<ConsoleLog>>) -> Self {
        Self { log }
    }

    fn print(&self, mut text: Buffers<'_>) -> Result<u32, ChainError> {
        let mut text = text.split_to(text.len().min(MAX_REQUEST))?;
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
            queue_sizes: QUEUE_SIZES,
            features: 0,
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if index != TRANSMIT_QUEUE {
            return Ok(());
        }
        io.drain(index, |chain| self.print(chain.readable))
            .map_err(DeviceError::queue("console", index))
    }
}

#[cfg(test)]
mod tests;
