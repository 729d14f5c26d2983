//! Numbers from the virtio specification, version 1.2, section 5.11 (File System Device).

/// The sizes of the high priority queue (FORGET and INTERRUPT) and the only request queue.
pub const QUEUE_SIZES: &[u16] = &[128, 256];

/// The index of the high priority queue.
pub const HIPRIO_QUEUE: usize = 0;

/// The index of the request queue.
pub const REQUEST_QUEUE: usize = 1;

/// The length of the tag in the configuration space.
pub const TAG_BYTES: usize = 36;

/// The length of the configuration space: the tag, then the number of request queues.
pub const CONFIG_BYTES: usize = TAG_BYTES + 4;
