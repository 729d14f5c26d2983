//! Numbers from the virtio specification, section 5.5 (Traditional Memory Balloon Device).

/// VIRTIO_BALLOON_F_REPORTING: the guest tells which of its pages are free.
pub const FEATURE_REPORTING: u64 = 1 << 5;

/// Queue numbers. Without the statistics and free page hinting features, reporting comes third.
pub mod queue {
    /// Pages that go into the balloon.
    pub const INFLATE: usize = 0;
    /// Pages that come out of it.
    pub const DEFLATE: usize = 1;
    /// Free pages.
    pub const REPORTING: usize = 2;
}

/// The balloon's page size is always this, whatever the guest's is.
pub const PAGE_SHIFT: u32 = 12;

/// Where actual lies in the configuration space; num_pages comes first.
pub const CONFIG_ACTUAL: usize = 4;

/// The configuration space: num_pages and actual.
pub const CONFIG_BYTES: usize = 8;
