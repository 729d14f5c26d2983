//! Numbers from the virtio specification, version 1.3, section 5.19 (PMEM Device).

/// The only queue: the driver's requests.
pub const QUEUE_SIZES: &[u16] = &[64];

/// The length of struct virtio_pmem_config: start and size, of eight bytes each.
pub const CONFIG_BYTES: usize = 16;

/// VIRTIO_PMEM_REQ_TYPE_FLUSH, the only type of requests, section 5.19.6.
pub const FLUSH: u32 = 0;

/// The results of a request, section 5.19.7.
pub mod result {
    pub const DONE: u32 = 0;
    pub const FAILED: u32 = 1;
}
