//! Numbers from the virtio specification, version 1.2, section 5.4 (Entropy Device).

/// The only queue: buffers to fill.
pub const QUEUE_SIZES: &[u16] = &[64];
