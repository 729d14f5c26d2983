//! What is in a slot that a device can be plugged into: nothing. Its device id is 0, so that the
//! guest's driver leaves it alone (section 4.2.3.1.1).

use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

/// A slot without a device, with as many queues as one may have later.
pub struct Empty(pub &'static [u16]);

impl VirtioDevice for Empty {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::NONE,
            queue_sizes: self.0,
            features: 0,
        }
    }

    fn process_queue(&mut self, _index: usize, _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}
