//! virtio-mem: memory that the guest is given and gives back while it runs, in blocks of 2 MiB.
//!
//! The host says how much of the device's region is to be plugged; the driver chooses the blocks and
//! asks for them one range after the other. A block that is not plugged costs the host nothing.

pub mod spec;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemory as _};

use self::spec::{
    BLOCK, CONFIG_BYTES, QUEUE_SIZES, REQUEST_BYTES, RESPONSE_BYTES, request, response, state,
};
use super::chain::{Chain, ChainError};
use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice, read_config_space};
use super::spec::device_id;
use crate::memory::{GuestMemory, discard};

/// What host and device tell one another, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Sizes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What the host wants to be plugged.
    requested: AtomicU64,
    /// The part of the region, from its start, that can be plugged.
    usable: AtomicU64,
    /// What is plugged.
    plugged: AtomicU64,
    /// The part of the region, from its start, above which nothing is plugged.
    top: AtomicU64,
}

impl Sizes {
    /// Asks for so much to be plugged. The driver hears of it when the transport announces a change
    /// of configuration.
    pub fn request(&self, bytes: u64) {
        self.0.requested.store(bytes, Ordering::Release);
    }

    /// Sets the part of the region that can be plugged. It must be memory until this is called again,
    /// and may not be less than [`Self::top`].
    pub fn set_usable(&self, bytes: u64) {
        self.0.usable.store(bytes, Ordering::Release);
    }

    /// What was asked for.
    pub fn requested(&self) -> u64 {
        self.0.requested.load(Ordering::Acquire)
    }

    /// What is plugged.
    pub fn plugged(&self) -> u64 {
        self.0.plugged.load(Ordering::Acquire)
    }

    /// The part of the region, from its start, above which nothing is plugged.
    pub fn top(&self) -> u64 {
        self.0.top.load(Ordering::Acquire)
    }

    fn usable(&self) -> u64 {
        self.0.usable.load(Ordering::Acquire)
    }
}

/// The device.
#[derive(Debug)]
pub struct Mem {
    /// Where its region lies in the guest's address space.
    region: Range<u64>,
    sizes: Sizes,
    /// A bit a block of the region.
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

    /// Carries out a request; returns the response's type and state.
    fn answer(&mut self, memory: &GuestMemory, bytes: &[u8; REQUEST_BYTES]) -> (u16, u16) {
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

    /// The blocks that a request is about, counted from the start of the region, if they can be
    /// plugged at all.
    fn blocks(&self, bytes: &[u8; REQUEST_BYTES]) -> Option<Range<u64>> {
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            low,
            high,
            ..,
        ] = *bytes;
        let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let count = u64::from(u16::from_le_bytes([low, high]));
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
        self.tell();
        response::ACK
    }

    /// Gives the blocks back to the host. They are zeroes when they are plugged again.
    fn unplug(&mut self, memory: &GuestMemory, blocks: Range<u64>) -> u16 {
        let start = GuestAddress(self.region.start + blocks.start * BLOCK);
        let bytes = (blocks.end - blocks.start) * BLOCK;
        // All that was ever plugged is memory. Where giving it back fails, it costs the host what it
        // has cost, and the guest finds its own leavings.
        if let Ok(slice) = memory.get_slice(start, bytes as usize)
            && let Err(error) = discard(&slice)
        {
            log::debug!("mem: cannot give memory back: {error}");
        }
        for block in blocks {
            self.plugged[block as usize / 64] &= !(1 << (block % 64));
        }
        self.tell();
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

    /// Says how much is plugged, and up to where.
    fn tell(&self) {
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

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let memory = io.memory;
        io.drain(index, |chain| self.serve(memory, chain))
            .map_err(|source| DeviceError::Queue {
                device: "mem",
                queue: index,
                source,
            })
    }
}

impl Mem {
    fn serve(&mut self, memory: &GuestMemory, mut chain: Chain<'_>) -> Result<u32, ChainError> {
        let mut bytes = [0; REQUEST_BYTES];
        let (kind, state) = match chain.readable.read(&mut bytes) {
            REQUEST_BYTES => self.answer(memory, &bytes),
            _ => (response::ERROR, 0),
        };
        let mut answer = [0; RESPONSE_BYTES];
        answer[..2].copy_from_slice(&kind.to_le_bytes());
        answer[8..].copy_from_slice(&state.to_le_bytes());
        Ok(chain.writable.write(&answer) as u32)
    }
}

#[cfg(test)]
mod tests;
