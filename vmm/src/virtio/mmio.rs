//! The MMIO transport, section 4.2 of the virtio specification: the registers through which the
//! guest finds a device, negotiates features and configures queues.
//!
//! The vCPU threads call it on MMIO exits. Most doorbells do not exit: KVM writes to the ioeventfds
//! of [`Slot::doorbells`]. Interrupts go through the irqfd of [`Slot::interrupt`].

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};

use super::device::{DeviceInfo, VirtioDevice};
use super::slot::Slot;
use super::spec::{device_id, feature, mmio as reg, status};
use super::state::{StateError, TransportState};

/// The size of a device's register window, in bytes.
pub const WINDOW: u64 = 0x1000;

/// Features of the rings, which every device offers.
const RING_FEATURES: u64 = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;

/// The registers of one slot.
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
    pub fn new(slot: Arc<Slot>) -> Result<Self, virtio_queue::Error> {
        let info = slot.with_device(|device| device.info());
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

    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Replaces the device in the slot by one with as many queues. The guest is not notified.
    pub fn replace(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), virtio_queue::Error> {
        let info = device.info();
        let queues = fresh_queues(&info)?;
        self.reset();
        self.slot.replace(device);
        (self.info, self.queues) = (info, queues);
        Ok(())
    }

    /// The state of the slot. Fails if the device or its driver is in the middle of something.
    pub fn save(&self) -> Result<TransportState, StateError> {
        let is_ready = self.status & status::DRIVER_OK != 0;
        if self.status & status::FEATURES_OK != 0 && !is_ready {
            return Err(StateError::Driver);
        }
        Ok(TransportState {
            device: self.info.id,
            status: self.status,
            driver_features: self.driver_features,
            slot: is_ready.then(|| self.slot.save()).transpose()?,
        })
    }

    /// Gives a slot that the guest has not used yet a state, if the guest used it then. A slot that
    /// was empty may hold a device now: the guest will find it there.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        if state.device == device_id::NONE {
            return Ok(());
        }
        if state.device != self.info.id {
            return Err(StateError::OtherDevice {
                then: state.device,
                now: self.info.id,
            });
        }
        let unknown = state.driver_features & !self.offered();
        if unknown != 0 {
            return Err(StateError::Features(unknown));
        }
        self.status = state.status;
        self.driver_features = state.driver_features;
        match &state.slot {
            Some(slot) if !slot.fits(self.info.queue_sizes) => Err(StateError::Queues),
            Some(slot) => self.slot.restore(state.driver_features, slot),
            None => Ok(()),
        }
    }

    /// The guest reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            self.slot
                .with_device(|device| device.read_config(start as usize, data));
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            // Section 4.2.2.2: drivers read registers four bytes at a time; other reads yield zero.
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
            reg::INTERRUPT_STATUS => self.slot.interrupt().cause(),
            reg::INTERRUPT_TAKE => self.slot.interrupt().take(),
            reg::STATUS => self.status | self.slot.interrupt().status(),
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
                .with_device(|device| device.write_config(start as usize, data));
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.set_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value as usize,
            reg::INTERRUPT_ACK => self.slot.interrupt().acknowledge(value),
            reg::STATUS => self.set_status(value),
            _ => self.set_queue_register(offset, value),
        }
    }

    fn set_queue_register(&mut self, offset: u64, value: u32) {
        // Section 3.1.1: queues are configured between FEATURES_OK and DRIVER_OK.
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel) else {
            return;
        };
        match offset {
            // `Slot::start` refuses a queue whose size is too large or no power of two.
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
        // An empty slot offers nothing.
        if self.info.id == device_id::NONE {
            0
        } else {
            self.info.features | RING_FEATURES
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => set_half(&mut self.driver_features, 0, value),
            1 => set_half(&mut self.driver_features, 32, value),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status;
        if added & status::FEATURES_OK != 0 && !self.features_acceptable() {
            // The device refuses the features by leaving the bit unset, section 3.1.1 step 6.
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
            // The sizes were valid when the transport was created.
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
    use proptest::prelude::*;

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
        let mut thread = DeviceThread::new().unwrap();
        let memory = crate::memory::map(2).unwrap();
        let slot = thread
            .add(Box::new(Empty(&[16])), CurrentMemory::new(memory))
            .unwrap();
        (thread, MmioTransport::new(slot).unwrap())
    }

    #[test]
    fn the_cause_of_an_interrupt_stays_until_it_is_acknowledged_or_taken() {
        let (_thread, mut transport) = empty();
        let raise = |transport: &MmioTransport| {
            transport.slot.interrupt().notify_config_change();
        };
        raise(&transport);
        assert_eq!(
            read(&transport, reg::INTERRUPT_STATUS),
            reg::INTERRUPT_CONFIG
        );
        assert_eq!(
            read(&transport, reg::INTERRUPT_STATUS),
            reg::INTERRUPT_CONFIG
        );
        transport.write(reg::INTERRUPT_ACK, &reg::INTERRUPT_CONFIG.to_le_bytes());
        assert_eq!(read(&transport, reg::INTERRUPT_STATUS), 0);
        raise(&transport);
        assert_eq!(read(&transport, reg::INTERRUPT_TAKE), reg::INTERRUPT_CONFIG);
        assert_eq!(read(&transport, reg::INTERRUPT_STATUS), 0);
    }

    #[test]
    fn an_empty_slot_has_no_device_and_starts_none() {
        let (_thread, mut transport) = empty();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::NONE);
        transport.write(reg::DRIVER_FEATURES_SEL, &1_u32.to_le_bytes());
        transport.write(reg::DRIVER_FEATURES, &1_u32.to_le_bytes());
        transport.write(reg::STATUS, &status::FEATURES_OK.to_le_bytes());
        assert_eq!(read(&transport, reg::STATUS), 0, "no features are offered");
    }

    #[test]
    fn a_device_is_present_from_plug_to_unplug() {
        let (_thread, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::RNG);
        transport.write(reg::STATUS, &status::ACKNOWLEDGE.to_le_bytes());
        transport.replace(Box::new(Empty(&[16]))).unwrap();
        assert_eq!(read(&transport, reg::DEVICE_ID), device_id::NONE);
        assert_eq!(
            read(&transport, reg::STATUS),
            0,
            "the driver's status is reset"
        );
    }

    fn write_register(transport: &mut MmioTransport, register: u64, value: u32) {
        transport.write(register, &value.to_le_bytes());
    }

    /// A slot whose driver has started the device with a queue at 0x1000.
    fn started() -> (DeviceThread, MmioTransport) {
        let (thread, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        let mut write = |register, value| write_register(&mut transport, register, value);
        write(reg::DRIVER_FEATURES_SEL, 1);
        write(reg::DRIVER_FEATURES, 1);
        write(reg::STATUS, status::FEATURES_OK);
        write(reg::QUEUE_NUM, 16);
        write(reg::QUEUE_DESC_LOW, 0x1000);
        write(reg::QUEUE_DRIVER_LOW, 0x2000);
        write(reg::QUEUE_DEVICE_LOW, 0x3000);
        write(reg::QUEUE_READY, 1);
        write(reg::STATUS, status::FEATURES_OK | status::DRIVER_OK);
        (thread, transport)
    }

    #[test]
    fn a_started_device_goes_on_from_its_state() {
        let (_thread, saved) = started();
        let state = postcard::to_stdvec(&saved.save().unwrap()).unwrap();
        let (_other, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        let restored = transport.restore(&postcard::from_bytes(&state).unwrap());
        restored.unwrap();
        let again = postcard::to_stdvec(&transport.save().unwrap()).unwrap();
        assert_eq!(again, state);
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(read(&transport, reg::STATUS), ready);
    }

    #[test]
    fn the_queues_of_a_started_device_cannot_be_changed() {
        let (_thread, mut transport) = started();
        let state =
            |transport: &MmioTransport| postcard::to_stdvec(&transport.save().unwrap()).unwrap();
        let before = state(&transport);
        for register in [reg::QUEUE_NUM, reg::QUEUE_READY, reg::QUEUE_DESC_LOW] {
            write_register(&mut transport, register, 0x40);
        }
        assert_eq!(state(&transport), before);
    }

    #[test]
    fn a_state_that_does_not_fit_the_slot_is_refused() {
        let (_thread, saved) = started();
        let state = || saved.save().unwrap();
        let (_other, mut transport) = empty();
        let refused = transport.restore(&state()).unwrap_err();
        assert!(matches!(refused, StateError::OtherDevice { now: 0, .. }));
        transport.replace(Box::new(Rng)).unwrap();
        let mut unknown = state();
        unknown.driver_features |= 1 << 20;
        let refused = transport.restore(&unknown).unwrap_err();
        assert!(matches!(refused, StateError::Features(_)), "{refused}");
    }

    #[test]
    fn a_queue_outside_memory_is_refused_when_it_is_restored() {
        let (_thread, saved) = started();
        let mut bytes = postcard::to_stdvec(&saved.save().unwrap()).unwrap();
        // The address of the descriptors, 0x1000, in postcard's variable length.
        let at = bytes.windows(2).position(|pair| pair == [0x80, 0x20]);
        bytes.splice(at.unwrap()..at.unwrap() + 2, [0x80, 0x80, 0x80, 0x80, 0x10]);
        let state = postcard::from_bytes(&bytes).unwrap();
        let (_other, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        let refused = transport.restore(&state).unwrap_err();
        assert!(matches!(refused, StateError::Device), "{refused}");
    }

    #[test]
    fn a_driver_that_is_still_negotiating_cannot_be_saved() {
        let (_thread, mut transport) = empty();
        transport.replace(Box::new(Rng)).unwrap();
        write_register(&mut transport, reg::DRIVER_FEATURES_SEL, 1);
        write_register(&mut transport, reg::DRIVER_FEATURES, 1);
        write_register(&mut transport, reg::STATUS, status::FEATURES_OK);
        assert!(matches!(transport.save(), Err(StateError::Driver)));
    }

    proptest! {
        #[test]
        fn a_damaged_state_starts_nothing_that_a_guest_could_not(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let (_thread, saved) = started();
            let mut bytes = postcard::to_stdvec(&saved.save().unwrap()).unwrap();
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if let Ok(state) = postcard::from_bytes::<TransportState>(&bytes) {
                let (thread, mut transport) = empty();
                transport.replace(Box::new(Rng)).unwrap();
                // Refused or not, it answers whatever comes.
                let _ = transport.restore(&state);
                let _ = transport.slot().notify(0);
                thread.handle_pending().unwrap();
                let _ = transport.save();
            }
        }
    }
}
