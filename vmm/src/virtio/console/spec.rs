//! Numbers from the virtio specification, version 1.2, section 5.3 (Console Device).

/// The sizes of the receive and the transmit queue.
pub const QUEUE_SIZES: &[u16] = &[16, 64];

/// The queue of the guest's output.
pub const TRANSMIT_QUEUE: usize = 1;
