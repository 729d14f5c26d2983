//! The content of an empty slot, into which a device can be plugged. Its device id is 0, so that
//! the guest's transport driver ignores it (section 4.2.3.1.1).

use super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
use super::spec::device_id;

/// No device, with the queue sizes of the device that the slot is for.
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
