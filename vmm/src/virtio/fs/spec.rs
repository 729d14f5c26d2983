//! Numbers from the virtio specification, section 5.11 (File System Device).

/// Queue numbers, without VIRTIO_FS_F_NOTIFICATION.
pub mod queue {
    /// Requests that overtake the others: FORGET and INTERRUPT.
    pub const HIPRIO: usize = 0;
}

/// The length of the tag in the configuration space.
pub const TAG_BYTES: usize = 36;

/// The configuration space: the tag, then the number of request queues.
pub const CONFIG_BYTES: usize = TAG_BYTES + 4;
