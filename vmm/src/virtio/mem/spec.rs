//! Numbers from the virtio specification, version 1.2, section 5.15 (Memory Device).

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver does not access unplugged memory.
pub const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The only queue: the driver's requests.
pub const QUEUE_SIZES: &[u16] = &[64];

/// The length of struct virtio_mem_config: block_size, node_id and padding, addr, region_size,
/// usable_region_size, plugged_size, requested_size, of eight bytes each.
pub const CONFIG_BYTES: usize = 56;

/// The size of a block in bytes: a huge page of the processor, and the least that Linux manages.
pub const BLOCK: u64 = 2 << 20;

/// The length of struct virtio_mem_req: type, addr and nb_blocks, each padded to eight bytes.
pub const REQUEST_BYTES: usize = 24;

/// The length of struct virtio_mem_resp: type, padded to eight bytes, and state.
pub const RESPONSE_BYTES: usize = 10;

/// Types of requests.
pub mod request {
    /// VIRTIO_MEM_REQ_PLUG
    pub const PLUG: u16 = 0;
    /// VIRTIO_MEM_REQ_UNPLUG
    pub const UNPLUG: u16 = 1;
    /// VIRTIO_MEM_REQ_UNPLUG_ALL
    pub const UNPLUG_ALL: u16 = 2;
    /// VIRTIO_MEM_REQ_STATE
    pub const STATE: u16 = 3;
}

/// Types of responses.
pub mod response {
    /// VIRTIO_MEM_RESP_ACK
    pub const ACK: u16 = 0;
    /// VIRTIO_MEM_RESP_NACK: the host refuses for now; the request was valid.
    pub const NACK: u16 = 1;
    /// VIRTIO_MEM_RESP_ERROR
    pub const ERROR: u16 = 3;
}

/// States in the response to STATE.
pub mod state {
    /// VIRTIO_MEM_STATE_PLUGGED
    pub const PLUGGED: u16 = 0;
    /// VIRTIO_MEM_STATE_UNPLUGGED
    pub const UNPLUGGED: u16 = 1;
    /// VIRTIO_MEM_STATE_MIXED
    pub const MIXED: u16 = 2;
}
