//! virtio-rng: the host's random numbers, section 5.4 of the specification.

use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

/// The most bytes one request is given. A guest that asks for gigabytes would otherwise keep the
/// thread, and with it the agent's channel, from everything else; Linux asks for 64 at a time.
const MAX_REQUEST: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::RNG,
            queue_sizes: &[64],
            features: 0,
        }
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        io.drain(index, |mut chain| {
            let mut bytes = [0; MAX_REQUEST];
            let wanted = chain.writable.len().min(MAX_REQUEST);
            // Answers at once on any host that has finished booting; fewer bytes are allowed.
            let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            Ok(chain.writable.write(&bytes[..got]) as u32)
        })
        .map_err(|source| DeviceError::Queue {
            device: "rng",
            queue: index,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fake::Driver;

    #[test]
    fn a_request_is_filled_with_changing_bytes() {
        let mut driver = Driver::new(Rng);
        let first = driver.request(0, &[], 64).unwrap();
        let second = driver.request(0, &[], 64).unwrap();
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first, second);
    }

    #[test]
    fn a_huge_request_is_answered_in_part() {
        let mut driver = Driver::new(Rng);
        assert_eq!(driver.request(0, &[], 1 << 20).unwrap().len(), MAX_REQUEST);
    }
}
