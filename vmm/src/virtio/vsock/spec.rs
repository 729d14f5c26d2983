//! Numbers from the virtio specification, version 1.2, section 5.10 (Socket Device).

use vm_memory::ByteValued;

/// Queue numbers.
pub mod queue {
    /// To the guest.
    pub const RX: usize = 0;
    /// From the guest.
    pub const TX: usize = 1;
}

/// The sizes of the receive, transmit and event queues. The device sends no events.
pub const QUEUE_SIZES: &[u16] = &[256, 256, 16];

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_TYPE_STREAM
pub const TYPE_STREAM: u16 = 1;

/// Operations, section 5.10.6.
pub mod op {
    /// VIRTIO_VSOCK_OP_REQUEST
    pub const REQUEST: u16 = 1;
    /// VIRTIO_VSOCK_OP_RESPONSE
    pub const RESPONSE: u16 = 2;
    /// VIRTIO_VSOCK_OP_RST
    pub const RST: u16 = 3;
    /// VIRTIO_VSOCK_OP_SHUTDOWN
    pub const SHUTDOWN: u16 = 4;
    /// VIRTIO_VSOCK_OP_RW
    pub const RW: u16 = 5;
    /// VIRTIO_VSOCK_OP_CREDIT_UPDATE
    pub const CREDIT_UPDATE: u16 = 6;
    /// VIRTIO_VSOCK_OP_CREDIT_REQUEST
    pub const CREDIT_REQUEST: u16 = 7;
}

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender of the packet receives no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender of the packet sends no more data.
pub const SHUTDOWN_SEND: u32 = 2;

/// struct virtio_vsock_hdr. All fields are little-endian, like x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// The length of the data after the header, in bytes.
    pub len: u32,
    /// [`TYPE_STREAM`]
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// Flags of [`op::SHUTDOWN`]; 0 in other packets.
    pub flags: u32,
    /// The size of the sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's receive buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

#[expect(unsafe_code, reason = "ByteValued is an unsafe trait")]
// SAFETY: the fields are integers, and packed leaves no padding.
unsafe impl ByteValued for Header {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_long_as_the_specification_says() {
        assert_eq!(size_of::<Header>(), 44);
    }
}
