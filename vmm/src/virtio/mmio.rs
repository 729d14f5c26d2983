//! The MMIO transport of the virtio specification, section 4.2: the registers through which the
//! guest finds a device, agrees on features with it and hands it its queues.
//!
//! The vCPU threads call it. Bells ring past it, through ioeventfds that the machine connects to
//! [`Slot::bells`], and interrupts through an irqfd on [`Slot::interrupt`].

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};

use super::device::{DeviceInfo, VirtioDevice};
use super::spec::{device_id, feature, mmio as reg, status};
use super::thread::Slot;

/// The bytes of address space a device takes.
pub const WINDOW: u64 = 0x1000;

/// Features of the rings, offered by every device.
const RING_FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// A device's registers.
pub struct MmioTransport {
    slot: Arc<Slot>,
    info: DeviceInfo,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: usize,
    queues: Vec<Queue>,
}

impl MmioTransport {
    /// The registers of the device in `slot`.
    pub fn new(slot: Arc<Slot>) -> Result<Self, virtio_queue::Error> {
        let info = slot.device(|device| device.info());
        let queues = fresh_queues(&info)?;
        Ok(Self {
            slot,
            info,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
        })
    }

    /// The device and its descriptors.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Puts another device into the slot, with as many queues as the one before, which goes. The
    /// guest is not told.
    pub fn replace(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), virtio_queue::Error> {
        let info = device.info();
        let queues = fresh_queues(&info)?;
        self.reset();
        self.slot.replace(device);
        (self.info, self.queues) = (info, queues);
        Ok(())
    }

    /// The guest reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            self.slot
                .device(|device| device.read_config(start as usize, data));
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            // Section 4.2.2.2: registers are read four bytes at a time; anything else reads zero.
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::DEVICE_VERSION => reg::VERSION,
            reg::DEVICE_ID => self.info.id,
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            reg::QUEUE_NUM_MAX => self
                .queues
                .get(self.queue_sel)
                .map_or(0, |queue| u32::from(queue.max_size())),
            reg::QUEUE_READY => self
                .queues
                .get(self.queue_sel)
                .map_or(0, |queue| u32::from(queue.ready())),
            reg::INTERRUPT_STATUS => self.slot.interrupt.reason(),
            reg::STATUS => self.status | self.slot.interrupt.status(),
            // No shared memory: a length of all ones, section 4.2.2.
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => {
                u32::MAX
            }
            _ => 0,
        }
    }

    /// The guest writes `data` at `offset` of the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            self.slot
                .device(|device| device.write_config(start as usize, data));
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.take_features(value),
            reg::QUEUE_SEL => self.queue_sel = value as usize,
            reg::QUEUE_NOTIFY => self.ring(value as usize),
            reg::INTERRUPT_ACK => self.slot.interrupt.acknowledge(value),
            reg::STATUS => self.set_status(value),
            _ => self.set_queue_register(offset, value),
        }
    }

    fn set_queue_register(&mut self, offset: u64, value: u32) {
        // A queue is configured after the features and before the device runs, section 3.1.1.
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel) else {
            return;
        };
        match offset {
            // A size that is no power of two or too large leaves the queue invalid; see `start`.
            reg::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_READY => queue.set_ready(value == 1),
            reg::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            reg::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        // The slot of a device that is not there offers nothing.
        if self.info.id == device_id::NONE {
            0
        } else {
            self.info.features | RING_FEATURES
        }
    }

    fn take_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => set_half(&mut self.driver_features, 0, value),
            1 => set_half(&mut self.driver_features, 32, value),
            _ => {}
        }
    }

    fn ring(&self, queue: usize) {
        if let Some(bell) = self.slot.bells().get(queue) {
            // Full means that it rings already.
            let _ = bell.write(1);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status;
        if added & status::FEATURES_OK != 0 && !self.features_acceptable() {
            // Left unset, which is how the device refuses them, section 3.1.1 step 6.
            added &= !status::FEATURES_OK;
        }
        self.status |= added;
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        if added & status::DRIVER_OK != 0 && self.status & ready == ready {
            self.start();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0
            && self.driver_features & feature::VERSION_1 != 0
    }

    fn start(&mut self) {
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
        }
        match fresh_queues(&self.info) {
            Ok(fresh) => {
                let queues = std::mem::replace(&mut self.queues, fresh);
                self.slot.start(self.driver_features, queues);
            }
            // The sizes were accepted when the transport was made.
            Err(error) => log::error!("virtio device {}: {error}", self.info.id),
        }
    }

    fn reset(&mut self) {
        self.slot.reset();
        self.status = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
    }
}

fn fresh_queues(info: &DeviceInfo) -> Result<Vec<Queue>, virtio_queue::Error> {
    info.queue_sizes
        .iter()
        .map(|&size| Queue::new(size))
        .collect()
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, shift: u32, value: u32) {
    *target = *target & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::CurrentMemory;
    use crate::virtio::empty::Empty;
    use crate::virtio::rng::Rng;
    use crate::virtio::thread::DeviceThread;

    fn read(transport: &MmioTransport, register: u64) -> u32 {
        let mut data = [0; 4];
        transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn empty() -> (DeviceThread, MmioTransport) {
        let mut thread = DeviceThread::new("test").unwrap();
        let memory = crate::memory::map(2).unwrap();
        let slot = thread
            .add(Box::new(Empty(&[16])), CurrentMemory::new(memory))
            .unwrap();
        (thread, MmioTransport::new(slot).unwrap())
    }

    #[test]
    fn an_empty_slot_is_no_device_and_starts_none() {
        let (_thread, mut transport) = empty();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::NONE);
        transport.write(reg::DRIVER_FEATURES_SEL, &1_u32.to_le_bytes());
        transport.write(reg::DRIVER_FEATURES, &1_u32.to_le_bytes());
        transport.write(reg::STATUS, &status::FEATURES_OK.to_le_bytes());
        assert_eq!(read(&transport, reg::STATUS), 0, "no features are offered");
    }

    #[test]
    fn a_device_is_there_from_when_it_is_plugged_in_until_it_is_taken_out() {
        let (_thread, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::RNG);
        transport.write(reg::STATUS, &status::ACKNOWLEDGE.to_le_bytes());
        transport.replace(Box::new(Empty(&[16]))).unwrap();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::NONE);
        assert_eq!(
            read(&transport, reg::STATUS),
            0,
            "what a driver set is forgotten"
        );
    }
}
