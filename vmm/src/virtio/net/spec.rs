//! Numbers from the virtio specification, version 1.2, section 5.1 (Network Device).

/// Feature bits, section 5.1.3.
pub mod feature {
    /// VIRTIO_NET_F_CSUM: the device accepts packets with partial checksums.
    pub const CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM: the driver accepts them too.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_MAC
    pub const MAC: u64 = 1 << 5;
    /// VIRTIO_NET_F_GUEST_TSO4
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_GUEST_ECN
    pub const GUEST_ECN: u64 = 1 << 9;
    /// VIRTIO_NET_F_HOST_TSO4
    pub const HOST_TSO4: u64 = 1 << 11;
    /// VIRTIO_NET_F_HOST_TSO6
    pub const HOST_TSO6: u64 = 1 << 12;
    /// VIRTIO_NET_F_HOST_ECN
    pub const HOST_ECN: u64 = 1 << 13;
    /// VIRTIO_NET_F_MRG_RXBUF
    pub const MRG_RXBUF: u64 = 1 << 15;
}

/// Queue numbers.
pub mod queue {
    /// To the guest.
    pub const RX: usize = 0;
    /// From the guest.
    pub const TX: usize = 1;
}

/// The sizes of the two queues.
pub const QUEUE_SIZES: &[u16] = &[256, 256];

/// The length of struct virtio_net_hdr with num_buffers, which VIRTIO_F_VERSION_1 implies.
pub const HEADER: usize = rvm_protocol::vmm::TAP_HEADER;

/// The offset of num_buffers in it.
pub const HEADER_NUM_BUFFERS: usize = 10;

/// The largest packet with segmentation offload: 64 KiB and an Ethernet header, section 5.1.6.3.1.
pub const MAX_PACKET: usize = 65550;
