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

/// A feature of our own: the device has ports, an access to which costs less than one to a
/// register, since KVM need not decode an instruction for it. A patch in guest-kernel/patches knows
/// them, too.
pub const PORTS: u64 = 1 << 20;

/// The guest writes the number of the awaited queue here instead of to QueueNotify.
pub const NOTIFY_PORT: u16 = 0x7fff;

/// The first of the ports that the guest reads to ask for the versions of files (`numbers.rs`).
pub const VERSION_PORT: u16 = 0x8000;
