//! virtio-pmem: a file of the host as memory that the guest reads, section 5.19 of the
//! specification.
//!
//! The device only says where the memory is: [`crate::hotplug`] maps the file there. The guest
//! cannot write to the file, so a flush has nothing to do.

mod spec;

use std::fs::File;
use std::ops::Range;

use self::spec::{CONFIG_BYTES, FLUSH, QUEUE_SIZES, result};
use super::backing::Backing;
use super::chain::{Chain, ChainError};
use super::device::{Busy, DeviceError, DeviceInfo, DeviceIo, VirtioDevice, read_config_space};
use super::spec::device_id;
use crate::file_id::FileId;

const NAME: &str = "pmem";

/// What the file is a multiple of, for [`Backing`].
const BLOCK: u32 = 1;

pub struct Pmem {
    config: [u8; CONFIG_BYTES],
    file: File,
    bytes: u64,
}

impl Pmem {
    /// The first `bytes` bytes of this file at these addresses of the guest, where zeroes follow
    /// them.
    pub fn new(file: File, bytes: u64, range: &Range<u64>) -> Self {
        let mut config = [0; CONFIG_BYTES];
        config[..8].copy_from_slice(&range.start.to_le_bytes());
        config[8..].copy_from_slice(&(range.end - range.start).to_le_bytes());
        Self {
            config,
            file,
            bytes,
        }
    }

    fn backing(&self) -> Backing {
        Backing {
            bytes: self.bytes,
            block_size: BLOCK,
            file: FileId::of_regular(&self.file),
        }
    }
}

fn serve(mut chain: Chain<'_>) -> Result<u32, ChainError> {
    let kind: u32 = chain.readable.read_obj("pmem request")?;
    let answer = match kind {
        FLUSH => result::DONE,
        _ => result::FAILED,
    };
    chain
        .writable
        .write_obj(&answer.to_le(), "pmem request's result")?;
    Ok(size_of_val(&answer) as u32)
}

impl VirtioDevice for Pmem {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::PMEM,
            queue_sizes: QUEUE_SIZES,
            features: 0,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let served = io.drain(index, serve);
        served.map_err(DeviceError::queue(NAME, index))
    }

    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        self.backing().save()
    }

    fn restore(&mut self, state: &[u8], _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.backing().check(state, NAME)
    }
}

#[cfg(test)]
mod tests;
