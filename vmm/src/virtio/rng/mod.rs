//! virtio-rng: the host's random numbers, section 5.4 of the specification.

mod spec;

use rustix::rand::{GetRandomFlags, getrandom};

use self::spec::QUEUE_SIZES;
use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

/// The most bytes of one response. A guest that asks for gigabytes would otherwise keep the thread,
/// and with it the agent's channel, from all other work; Linux asks for 64 bytes at a time.
const MAX_REQUEST: usize = 4096;

#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::RNG,
            queue_sizes: QUEUE_SIZES,
            features: 0,
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        io.drain(index, |mut chain| {
            let mut bytes = [0; MAX_REQUEST];
            let wanted = chain.writable.len().min(MAX_REQUEST);
            // Does not block on a host that has finished booting. A shorter response is allowed.
            let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            Ok(chain.writable.write(&bytes[..got]) as u32)
        })
        .map_err(DeviceError::queue("rng", index))
    }
}

#[cfg(test)]
mod tests;
