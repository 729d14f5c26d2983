//! virtio-mem: memory that is plugged and unplugged while the guest runs, in blocks of 2 MiB,
//! section 5.15 of the specification.
//!
//! The host sets how much of the device's region is to be plugged; the driver chooses the blocks
//! and plugs them one range after the other. An unplugged block takes no memory of the host.

mod spec;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemory as _};

use self::spec::{CONFIG_BYTES, REQUEST_BYTES, RESPONSE_BYTES, request, response, state};
use super::chain::{Chain, ChainError};
use super::device::{Busy, DeviceError, DeviceInfo, DeviceIo, VirtioDevice, read_config_space};
use super::spec::device_id;
use crate::memory::{GuestMemory, discard};

pub use self::spec::{BLOCK, QUEUE_SIZES};

/// The sizes of the region's parts, shared by the host side and the device, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Sizes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How much the host asks the driver to plug.
    requested: AtomicU64,
    /// The end of the part of the region, from its start, that can be plugged.
    usable: AtomicU64,
    plugged: AtomicU64,
    /// The end of the last plugged block, from the region's start.
    top: AtomicU64,
}

impl Sizes {
    /// Asks the driver to plug `bytes` bytes in all. The driver reads the new size when the
    /// transport notifies it of a configuration change.
    pub fn request(&self, bytes: u64) {
        self.0.requested.store(bytes, Ordering::Release);
    }

    /// Sets the end of the part of the region that can be plugged. That part must be memory until
    /// this is called again, and must not end below [`Self::top`].
    pub fn set_usable(&self, bytes: u64) {
        self.0.usable.store(bytes, Ordering::Release);
    }

    pub fn requested(&self) -> u64 {
        self.0.requested.load(Ordering::Acquire)
    }

    pub fn plugged(&self) -> u64 {
        self.0.plugged.load(Ordering::Acquire)
    }

    /// The end of the last plugged block, from the region's start.
    pub fn top(&self) -> u64 {
        self.0.top.load(Ordering::Acquire)
    }

    fn usable(&self) -> u64 {
        self.0.usable.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub struct Mem {
    /// The region in the guest's address space.
    region: Range<u64>,
    sizes: Sizes,
    /// One bit per block of the region.
    plugged: Vec<u64>,
}

impl Mem {
    /// A device with nothing plugged. The region begins and ends at multiples of [`BLOCK`].
    pub fn new(region: Range<u64>, sizes: Sizes) -> Self {
        let blocks = (region.end - region.start) / BLOCK;
        Self {
            region,
            sizes,
            plugged: vec![0; blocks.div_ceil(64) as usize],
        }
    }

    /// Executes a request; returns the response's type and state.
    fn execute(&mut self, memory: &GuestMemory, bytes: &[u8; REQUEST_BYTES]) -> (u16, u16) {
        let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
        if kind == request::UNPLUG_ALL {
            return (self.unplug(memory, 0..self.sizes.top() / BLOCK), 0);
        }
        let Some(blocks) = self.blocks(bytes) else {
            return (response::ERROR, 0);
        };
        match kind {
            request::PLUG => (self.plug(blocks), 0),
            request::UNPLUG if self.state(blocks.clone()) == state::PLUGGED => {
                (self.unplug(memory, blocks), 0)
            }
            request::STATE => (response::ACK, self.state(blocks)),
            _ => (response::ERROR, 0),
        }
    }

    /// The blocks of a request, counted from the start of the region. None if they cannot be
    /// plugged.
    fn blocks(&self, bytes: &[u8; REQUEST_BYTES]) -> Option<Range<u64>> {
        let (_type, rest) = bytes.split_first_chunk::<8>()?;
        let (address, rest) = rest.split_first_chunk::<8>()?;
        let address = u64::from_le_bytes(*address);
        let count = u64::from(u16::from_le_bytes(*rest.first_chunk()?));
        let offset = address.checked_sub(self.region.start)?;
        let end = offset.checked_add(count * BLOCK)?;
        let fits = offset % BLOCK == 0 && count > 0 && end <= self.sizes.usable();
        fits.then_some(offset / BLOCK..end / BLOCK)
    }

    fn plug(&mut self, blocks: Range<u64>) -> u16 {
        if self.state(blocks.clone()) != state::UNPLUGGED {
            return response::ERROR;
        }
        let bytes = (blocks.end - blocks.start) * BLOCK;
        if self.sizes.plugged() + bytes > self.sizes.requested() {
            return response::NACK;
        }
        for block in blocks {
            self.plugged[block as usize / 64] |= 1 << (block % 64);
        }
        self.publish_sizes();
        response::ACK
    }

    /// Gives the blocks back to the host. They read as zeroes when they are plugged again.
    fn unplug(&mut self, memory: &GuestMemory, blocks: Range<u64>) -> u16 {
        let start = GuestAddress(self.region.start + blocks.start * BLOCK);
        let bytes = (blocks.end - blocks.start) * BLOCK;
        // All that was ever plugged is memory. If freeing it fails, the host keeps the pages and
        // the guest finds its old contents.
        if let Ok(slice) = memory.get_slice(start, bytes as usize)
            && let Err(error) = discard(&slice)
        {
            log::debug!("mem: cannot free memory: {error}");
        }
        for block in blocks {
            self.plugged[block as usize / 64] &= !(1 << (block % 64));
        }
        self.publish_sizes();
        response::ACK
    }

    fn state(&self, mut blocks: Range<u64>) -> u16 {
        let is_plugged = |block: u64| self.plugged[block as usize / 64] >> (block % 64) & 1 == 1;
        let first = is_plugged(blocks.start);
        match (blocks.all(|block| is_plugged(block) == first), first) {
            (true, true) => state::PLUGGED,
            (true, false) => state::UNPLUGGED,
            (false, _) => state::MIXED,
        }
    }

    /// Stores how much is plugged, and up to where.
    fn publish_sizes(&self) {
        let count: u64 = self.plugged.iter().map(|w| u64::from(w.count_ones())).sum();
        let last = self.plugged.iter().rposition(|word| *word != 0);
        let top = last.map_or(0, |index| {
            (index as u64 + 1) * 64 - u64::from(self.plugged[index].leading_zeros())
        });
        let shared = &self.sizes.0;
        shared.plugged.store(count * BLOCK, Ordering::Release);
        shared.top.store(top * BLOCK, Ordering::Release);
    }
}

impl VirtioDevice for Mem {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::MEM,
            queue_sizes: QUEUE_SIZES,
            features: spec::FEATURE_UNPLUGGED_INACCESSIBLE,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let fields = [
            BLOCK,
            // No NUMA node.
            0,
            self.region.start,
            self.region.end - self.region.start,
            self.sizes.usable(),
            self.sizes.plugged(),
            self.sizes.requested(),
        ];
        for (place, field) in space.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        read_config_space(&space, offset, data);
    }

    /// The blocks that are plugged, as in [`Self::plugged`].
    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        let words = self.plugged.iter();
        Ok(words.flat_map(|word| word.to_le_bytes()).collect())
    }

    fn restore(&mut self, state: &[u8], _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let (words, rest) = state.as_chunks();
        if words.len() != self.plugged.len() || !rest.is_empty() {
            return Err(refused("the region that was saved has another size"));
        }
        let words = words.iter().copied().map(u64::from_le_bytes);
        self.plugged = words.collect();
        self.publish_sizes();
        // What is not memory cannot be plugged.
        match self.sizes.top() <= self.sizes.usable() {
            true => Ok(()),
            false => Err(refused("a block that was plugged is no memory")),
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let memory = io.memory;
        io.drain(index, |chain| self.serve(memory, chain))
            .map_err(DeviceError::queue("mem", index))
    }
}

impl Mem {
    fn serve(&mut self, memory: &GuestMemory, mut chain: Chain<'_>) -> Result<u32, ChainError> {
        let mut bytes = [0; REQUEST_BYTES];
        let (kind, state) = match chain.readable.read(&mut bytes) {
            REQUEST_BYTES => self.execute(memory, &bytes),
            _ => (response::ERROR, 0),
        };
        let mut answer = [0; RESPONSE_BYTES];
        answer[..2].copy_from_slice(&kind.to_le_bytes());
        answer[8..].copy_from_slice(&state.to_le_bytes());
        Ok(chain.writable.write(&answer) as u32)
    }
}

fn refused(reason: &str) -> DeviceError {
    DeviceError::State {
        device: "mem",
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
