//! Numbers from the virtio specification, version 1.2, section 5.5 (Traditional Memory
//! Balloon Device).

/// VIRTIO_BALLOON_F_REPORTING: the guest reports which of its pages are free.
pub const FEATURE_REPORTING: u64 = 1 << 5;

/// Queue numbers. Without the statistics and free page hinting features, reporting comes third.
pub mod queue {
    /// Page frame numbers of pages that enter the balloon.
    pub const INFLATE: usize = 0;
    /// Page frame numbers of pages that leave the balloon.
    pub const DEFLATE: usize = 1;
}

/// The sizes of the inflate, deflate and reporting queues.
pub const QUEUE_SIZES: &[u16] = &[128, 128, 32];

/// The length of a page frame number.
pub const PFN_BYTES: usize = 4;

/// The balloon's pages have 4 KiB, whatever the guest's page size is.
pub const PAGE_SHIFT: u32 = 12;

/// The offset of `actual` in the configuration space, after num_pages.
pub const CONFIG_ACTUAL: usize = 4;

/// The length of the configuration space: num_pages and actual.
pub const CONFIG_BYTES: usize = 8;
