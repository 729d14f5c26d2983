//! The state of a slot in a file: that of its registers, its queues and its device.

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

use super::device::{Busy, DeviceError};

/// The state of a slot could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the device cannot be saved now")]
    Busy(#[from] Busy),
    #[error("the device's thread does not answer; it may wait for the host's disk")]
    Thread,
    #[error("the driver is setting the device up")]
    Driver,
    #[error("the device has failed")]
    Device,
    #[error("the device does not take the state")]
    Refused(#[source] DeviceError),
    #[error("the state is that of device {then}, and the slot has device {now}")]
    OtherDevice { then: u32, now: u32 },
    #[error("the driver has accepted features that are not offered: {0:#x}")]
    Features(u64),
    #[error("the device has other queues")]
    Queues,
    #[error("a queue's state is invalid")]
    Queue(#[from] virtio_queue::Error),
}

/// The registers of a slot and, if the driver was ready, its queues and its device.
#[derive(Serialize, Deserialize)]
pub struct TransportState {
    /// Section 5 of the specification; 0 for an empty slot.
    pub(super) device: u32,
    pub(super) status: u32,
    pub(super) driver_features: u64,
    pub(super) slot: Option<SlotState>,
}

/// The state of a device that was started.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SlotState {
    queues: Vec<QueueState>,
    /// InterruptStatus
    pub(super) cause: u32,
    /// See [`super::device::VirtioDevice::save`].
    pub(super) device: Vec<u8>,
}

impl SlotState {
    pub(super) fn new(queues: &[Queue], cause: u32, device: Vec<u8>) -> Self {
        Self {
            queues: queues.iter().map(QueueState::of).collect(),
            cause,
            device,
        }
    }

    /// The queues, whose addresses are not checked yet.
    pub(super) fn queues(&self) -> Result<Vec<Queue>, virtio_queue::Error> {
        self.queues.iter().map(QueueState::queue).collect()
    }

    /// Whether the queues are those of a device whose queues have at most these sizes.
    pub(super) fn fits(&self, sizes: &[u16]) -> bool {
        let found = self.queues.iter().map(|queue| queue.max_size);
        found.eq(sizes.iter().copied())
    }
}

/// The state of a queue: [`virtio_queue::QueueState`], which serde does not know.
#[derive(Clone, Serialize, Deserialize)]
struct QueueState {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl QueueState {
    fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }

    fn queue(&self) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        })
    }
}
