//! virtio-balloon: memory that the guest does not need goes back to the host.
//!
//! By default only free page reporting is at work: the guest names stretches of memory that are
//! free, and they cost the host nothing until they are used again. The balloon proper takes memory
//! when the host asks for it; the guest then has less in all, and may not take it back by itself.

pub mod spec;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemory as _};

use self::spec::{CONFIG_ACTUAL, CONFIG_BYTES, PAGE_SHIFT, queue};
use super::chain::{Chain, ChainError};
use super::device::{DeviceError, DeviceInfo, DeviceIo, HostFds, VirtioDevice, read_config_space};
use super::spec::device_id;
use crate::memory::{GuestMemory, GuestSlice, discard};

/// What host and device tell one another, in pages.
#[derive(Clone, Debug, Default)]
pub struct Target(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The size the host wants the balloon to have.
    wanted: AtomicU32,
    /// What has gone into it, and has not come out.
    held: AtomicU32,
}

impl Target {
    /// Asks for a balloon of this many MiB. The driver hears of it when the transport announces a
    /// change of configuration.
    pub fn set_mib(&self, mib: u64) {
        let pages = u32::try_from(mib.saturating_mul(1 << (20 - PAGE_SHIFT))).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
    }

    /// Whether the balloon has the size that was asked for.
    pub fn is_reached(&self) -> bool {
        self.0.held.load(Ordering::Acquire) == self.0.wanted.load(Ordering::Acquire)
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let change = |held| Some(change(held));
        // It always changes.
        let _ = self
            .0
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Balloon {
    target: Target,
    /// The size that the driver says it has.
    actual: [u8; 4],
}

impl Balloon {
    /// A balloon that becomes as large as `target` says.
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
            queue_sizes: &[128, 128, 32],
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
        // The driver reports how far it got; nothing else is its to write.
        if let (CONFIG_ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.actual = actual;
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let (memory, target) = (io.memory, &self.target);
        io.drain(index, |chain| match index {
            queue::INFLATE => {
                let pages = inflate(memory, chain)?;
                target.change(|held| held.saturating_add(pages));
                Ok(0)
            }
            // What leaves the balloon is touched, and so comes back by itself.
            queue::DEFLATE => {
                let pages = chain.readable.len() / NUMBER_BYTES;
                target.change(|held| held.saturating_sub(pages as u32));
                Ok(0)
            }
            _ => report(&chain),
        })
        .map_err(|source| DeviceError::Queue {
            device: "balloon",
            queue: index,
            source,
        })
    }

    fn reset(&mut self, _host: &mut dyn HostFds) {
        self.target.change(|_| 0);
    }
}

/// Bytes of a page's number.
const NUMBER_BYTES: usize = 4;

/// Pages by number; returns how many.
fn inflate(memory: &GuestMemory, mut chain: Chain<'_>) -> Result<u32, ChainError> {
    let mut pages = 0;
    let mut number = [0; NUMBER_BYTES];
    while chain.readable.read(&mut number) == number.len() {
        let address = GuestAddress(u64::from(u32::from_le_bytes(number)) << PAGE_SHIFT);
        let page = memory
            .get_slice(address, 1 << PAGE_SHIFT)
            .map_err(|_| ChainError::Buffer)?;
        give_back(&page);
        pages += 1;
    }
    Ok(pages)
}

/// Stretches of memory, as the buffers of the chain themselves.
fn report(chain: &Chain<'_>) -> Result<u32, ChainError> {
    chain.writable.segments().iter().for_each(give_back);
    Ok(0)
}

/// Gives whole pages back to the host. Failing costs memory and nothing else, so it is only told.
fn give_back(slice: &GuestSlice<'_>) {
    if let Err(error) = discard(slice) {
        log::debug!("balloon: cannot give memory back: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::Driver;
    use vm_memory::Bytes;

    #[test]
    fn a_page_in_the_balloon_costs_nothing_and_reads_zero() {
        let mut driver = Driver::new(Balloon::default());
        let page = GuestAddress(16 << 20);
        driver.memory().write_obj(7_u64, page).unwrap();
        let number = (page.0 >> PAGE_SHIFT) as u32;
        driver
            .request(queue::INFLATE, &number.to_le_bytes(), 0)
            .unwrap();
        assert_eq!(driver.memory().read_obj::<u64>(page).unwrap(), 0);
    }

    #[test]
    fn a_page_outside_memory_is_an_error() {
        let mut driver = Driver::new(Balloon::default());
        let result = driver.request(queue::INFLATE, &u32::MAX.to_le_bytes(), 0);
        assert!(matches!(
            result,
            Err(DeviceError::Queue {
                source: ChainError::Buffer,
                ..
            })
        ));
    }

    #[test]
    fn the_balloon_has_its_size_when_all_pages_are_in_it_or_out() {
        let target = Target::default();
        let mut driver = Driver::new(Balloon::new(target.clone()));
        target.set_mib(1);
        let pages: Vec<u8> = (4096..4096 + 256_u32).flat_map(u32::to_le_bytes).collect();
        assert!(!target.is_reached());
        driver.request(queue::INFLATE, &pages, 0).unwrap();
        assert!(target.is_reached());
        target.set_mib(0);
        assert!(!target.is_reached());
        driver.request(queue::DEFLATE, &pages, 0).unwrap();
        assert!(target.is_reached());
    }

    #[test]
    fn the_driver_can_only_write_what_it_reports() {
        let target = Target::default();
        let mut balloon = Balloon::new(target.clone());
        target.set_mib(1);
        balloon.write_config(0, &[9; 4]);
        balloon.write_config(CONFIG_ACTUAL, &5_u32.to_le_bytes());
        balloon.write_config(CONFIG_ACTUAL + 2, &[9; 4]);
        let mut space = [0; CONFIG_BYTES];
        balloon.read_config(0, &mut space);
        assert_eq!(space, [0, 1, 0, 0, 5, 0, 0, 0]);
    }
}
