//! virtio-balloon: gives memory that the guest does not need back to the host, section 5.5 of the
//! specification.
//!
//! Free page reporting works at all times: the guest reports ranges of free memory, and the host
//! frees their pages until the guest uses them again. The balloon itself takes memory when the host
//! asks for it; the guest then has less memory, and cannot take it back by itself.

mod spec;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemory as _};

use self::spec::{CONFIG_ACTUAL, CONFIG_BYTES, PAGE_SHIFT, PFN_BYTES, QUEUE_SIZES, queue};
use super::chain::{Chain, ChainError};
use super::device::{
    Busy, DeviceError, DeviceInfo, DeviceIo, HostFds, VirtioDevice, read_config_space,
};
use super::spec::device_id;
use crate::memory::{GuestMemory, GuestSlice, discard};

/// The most pages of one request. Each is a system call, and a guest that lists all of its memory
/// as page frame numbers would otherwise keep the thread, and with it the agent's channel, for
/// hours; Linux lists 256 at a time.
const MAX_PAGES: usize = 1024;

/// The most bytes of free memory that one request reports. A guest that reports all of a large
/// memory, or a part of it a thousand times, would keep the thread for as long as the host takes to
/// walk it; Linux reports 32 ranges of 4 MiB at a time.
const MAX_REPORTED: usize = 1 << 30;

/// The balloon's sizes, shared by the host side and the device, in pages.
#[derive(Clone, Debug, Default)]
pub struct Target(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The size that the host asks for.
    wanted: AtomicU32,
    /// The pages in the balloon: those inflated minus those deflated.
    inflated: AtomicU32,
}

impl Target {
    /// Asks for a balloon of this many MiB. The driver reads the new size when the transport
    /// notifies it of a configuration change.
    pub fn set_mib(&self, mib: u64) {
        let pages = u32::try_from(mib.saturating_mul(1 << (20 - PAGE_SHIFT))).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
    }

    pub fn is_reached(&self) -> bool {
        self.0.inflated.load(Ordering::Acquire) == self.0.wanted.load(Ordering::Acquire)
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let change = |pages| Some(change(pages));
        // The closure never returns None.
        let _ = self
            .0
            .inflated
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }
}

#[derive(Debug, Default)]
pub struct Balloon {
    target: Target,
    /// The size that the driver last reported, in pages.
    actual: [u8; 4],
}

impl Balloon {
    pub fn new(target: Target) -> Self {
        Self {
            target,
            actual: [0; 4],
        }
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::BALLOON,
            queue_sizes: QUEUE_SIZES,
            features: spec::FEATURE_REPORTING,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; CONFIG_BYTES];
        let target = self.target.0.wanted.load(Ordering::Acquire);
        space[..CONFIG_ACTUAL].copy_from_slice(&target.to_le_bytes());
        space[CONFIG_ACTUAL..].copy_from_slice(&self.actual);
        read_config_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // The driver may write only `actual`.
        if let (CONFIG_ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.actual = actual;
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let served = match index {
            queue::INFLATE => self.inflate(io),
            // The guest touches the pages that leave the balloon, which allocates them again.
            queue::DEFLATE => io.drain(index, |chain| {
                let pages = chain.readable.len() / PFN_BYTES;
                let change = |inflated: u32| inflated.saturating_sub(pages as u32);
                self.target.change(change);
                Ok(0)
            }),
            _ => io.drain(index, |chain| report_free_pages(&chain)),
        };
        served.map_err(DeviceError::queue("balloon", index))
    }

    fn reset(&mut self, _host: &mut dyn HostFds) {
        self.target.change(|_| 0);
    }

    /// The pages in the balloon.
    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        let inflated = self.target.0.inflated.load(Ordering::Acquire);
        Ok(inflated.to_le_bytes().to_vec())
    }

    fn restore(&mut self, state: &[u8], _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let inflated = state.try_into().map(u32::from_le_bytes);
        let inflated = inflated.map_err(|_| DeviceError::State {
            device: "balloon",
            reason: "the state has another length".to_owned(),
        })?;
        self.actual = inflated.to_le_bytes();
        self.target.change(|_| inflated);
        Ok(())
    }
}

impl Balloon {
    fn inflate(&self, io: &mut DeviceIo<'_>) -> Result<(), ChainError> {
        while let Some(chain) = io.pop(queue::INFLATE)? {
            let head = chain.head;
            let pages = free_listed(io.memory, chain)?;
            self.target
                .change(|inflated| inflated.saturating_add(pages));
            let bytes = (pages as usize) << PAGE_SHIFT;
            io.budget.count_bytes(queue::INFLATE, bytes);
            io.push(queue::INFLATE, head, 0)?;
        }
        Ok(())
    }
}

/// Frees the pages that the chain lists by page frame number; returns how many.
fn free_listed(memory: &GuestMemory, mut chain: Chain<'_>) -> Result<u32, ChainError> {
    if chain.readable.len() > MAX_PAGES * PFN_BYTES {
        return Err(ChainError::Long("page frame numbers"));
    }
    let mut pages = 0;
    let mut pfn = [0; PFN_BYTES];
    while chain.readable.read(&mut pfn) == pfn.len() {
        let address = GuestAddress(u64::from(u32::from_le_bytes(pfn)) << PAGE_SHIFT);
        let page = memory
            .get_slice(address, 1 << PAGE_SHIFT)
            .map_err(|_| ChainError::Buffer)?;
        free(&page);
        pages += 1;
    }
    Ok(pages)
}

/// Frees the chain's buffers, which are the free pages themselves.
fn report_free_pages(chain: &Chain<'_>) -> Result<u32, ChainError> {
    if chain.writable.len() > MAX_REPORTED {
        return Err(ChainError::Long("free pages"));
    }
    chain.writable.segments().iter().for_each(free);
    Ok(0)
}

/// Gives whole pages back to the host. A failure costs only memory, so it is only logged.
fn free(slice: &GuestSlice<'_>) {
    if let Err(error) = discard(slice) {
        log::debug!("balloon: cannot free memory: {error}");
    }
}

#[cfg(test)]
mod tests;
