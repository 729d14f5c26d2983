//! Numbers from the virtio specification, version 1.2, section 5.11 (File System Device).

/// The sizes of the high priority queue (FORGET and INTERRUPT) and of the request queues.
pub const QUEUE_SIZES: &[u16] = &[128, 256, 256];

/// The index of the high priority queue.
pub const HIPRIO_QUEUE: usize = 0;

/// The index of the first request queue.
pub const REQUEST_QUEUE: usize = 1;

/// The index of the last request queue, to which our guest kernel sends the requests whose senders
/// wait for the answer. QEMU's device has one request queue, for all.
pub const AWAITED_QUEUE: usize = 2;

/// The length of the tag in the configuration space.
pub const TAG_BYTES: usize = 36;

/// The length of the configuration space: the tag, then the number of request queues.
pub const CONFIG_BYTES: usize = TAG_BYTES + 4;
