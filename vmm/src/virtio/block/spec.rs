//! Numbers from the virtio specification, version 1.2, section 5.2 (Block Device).

use vm_memory::ByteValued;

/// Feature bits, section 5.2.3.
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO
    pub const READ_ONLY: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_DISCARD
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types, section 5.2.6.
pub mod request {
    /// VIRTIO_BLK_T_IN
    pub const IN: u32 = 0;
    /// VIRTIO_BLK_T_OUT
    pub const OUT: u32 = 1;
    /// VIRTIO_BLK_T_FLUSH
    pub const FLUSH: u32 = 4;
    /// VIRTIO_BLK_T_GET_ID
    pub const GET_ID: u32 = 8;
    /// VIRTIO_BLK_T_DISCARD
    pub const DISCARD: u32 = 11;
    /// VIRTIO_BLK_T_WRITE_ZEROES
    pub const WRITE_ZEROES: u32 = 13;
}

/// The last byte of every response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP
    Unsupported = 2,
}

/// The only queue: requests.
pub const QUEUE: usize = 0;

/// Its size.
pub const QUEUE_SIZES: &[u16] = &[256];

/// Sectors have 512 bytes.
pub const SECTOR_SHIFT: u32 = 9;

/// The length of the response to GET_ID.
pub const ID_BYTES: usize = 20;

/// struct virtio_blk_req without its data.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Header {
    /// One of [`request`].
    pub kind: u32,
    pub reserved: u32,
    pub sector: u64,
}

#[expect(unsafe_code, reason = "ByteValued is an unsafe trait")]
// SAFETY: the fields are integers and leave no padding between them.
unsafe impl ByteValued for Header {}

/// struct virtio_blk_discard_write_zeroes
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Range {
    pub sector: u64,
    pub num_sectors: u32,
    pub flags: u32,
}

impl Range {
    /// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: the sectors may be deallocated.
    pub const UNMAP: u32 = 1;
}

#[expect(unsafe_code, reason = "ByteValued is an unsafe trait")]
// SAFETY: the fields are integers and leave no padding between them.
unsafe impl ByteValued for Range {}

/// struct virtio_blk_config
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
pub struct Config {
    /// The size of the disk in sectors.
    pub capacity: u64,
    /// The most bytes of a data segment.
    pub size_max: u32,
    /// The most data segments of a request.
    pub seg_max: u32,
    /// Unused without VIRTIO_BLK_F_GEOMETRY.
    pub geometry: u32,
    /// The size of a logical block in bytes.
    pub blk_size: u32,
    /// Topology, write cache, queues: features that the device does not offer.
    pub unused: [u8; 12],
    /// The most sectors of one DISCARD range.
    pub max_discard_sectors: u32,
    /// The most ranges of one DISCARD.
    pub max_discard_seg: u32,
    /// The alignment of a DISCARD range, in sectors.
    pub discard_sector_alignment: u32,
    /// The most sectors of one WRITE_ZEROES range.
    pub max_write_zeroes_sectors: u32,
    /// The most ranges of one WRITE_ZEROES.
    pub max_write_zeroes_seg: u32,
    /// 1 if WRITE_ZEROES may deallocate.
    pub write_zeroes_may_unmap: u8,
    pub unused1: [u8; 3],
}

#[expect(unsafe_code, reason = "ByteValued is an unsafe trait")]
// SAFETY: the fields are integers, and packed leaves no padding.
unsafe impl ByteValued for Config {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_fields_where_the_specification_puts_them() {
        assert_eq!(std::mem::offset_of!(Config, blk_size), 20);
        assert_eq!(std::mem::offset_of!(Config, max_discard_sectors), 36);
        assert_eq!(std::mem::offset_of!(Config, write_zeroes_may_unmap), 56);
        assert_eq!(size_of::<Config>(), 60);
    }
}
