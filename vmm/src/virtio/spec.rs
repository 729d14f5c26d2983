//! Numbers from "Virtual I/O Device (VIRTIO) Version 1.2" that all devices share.

/// Feature bits, section 6.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1
    pub const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_ACCESS_PLATFORM
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Device types, section 5.
pub mod device_id {
    /// An empty slot, section 4.2.3.1.1.
    pub const NONE: u32 = 0;
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const RNG: u32 = 4;
    /// Traditional memory balloon.
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
    pub const MEM: u32 = 24;
    pub const FS: u32 = 26;
    pub const PMEM: u32 = 27;
}

/// Device status bits, section 2.1.
#[allow(dead_code, reason = "the table of the specification is complete")]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    /// DEVICE_NEEDS_RESET
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Registers of the MMIO transport, section 4.2.2.
#[allow(dead_code, reason = "the table of the specification is complete")]
pub mod mmio {
    /// "virt"
    pub const MAGIC: u32 = 0x7472_6976;
    /// The version of the register layout.
    pub const VERSION: u32 = 2;
    /// Our vendor id: "rvm\0".
    pub const VENDOR: u32 = 0x006d_7672;

    /// MagicValue, R
    pub const MAGIC_VALUE: u64 = 0x000;
    /// Version, R
    pub const DEVICE_VERSION: u64 = 0x004;
    /// DeviceID, R
    pub const DEVICE_ID: u64 = 0x008;
    /// VendorID, R
    pub const VENDOR_ID: u64 = 0x00c;
    /// DeviceFeatures, R
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// DeviceFeaturesSel, W
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// DriverFeatures, W
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// DriverFeaturesSel, W
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// QueueSel, W
    pub const QUEUE_SEL: u64 = 0x030;
    /// QueueNumMax, R
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// QueueNum, W
    pub const QUEUE_NUM: u64 = 0x038;
    /// QueueReady, RW
    pub const QUEUE_READY: u64 = 0x044;
    /// QueueNotify, W
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// InterruptStatus, R
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// InterruptACK, W
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Ours, R: InterruptStatus, acknowledged by the read. Our guest kernel reads it where the
    /// vendor is [`VENDOR`], and spares an exit for each interrupt.
    pub const INTERRUPT_TAKE: u64 = 0x068;
    /// Status, RW
    pub const STATUS: u64 = 0x070;
    /// QueueDescLow, W
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// QueueDescHigh, W
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// QueueDriverLow, W
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// QueueDriverHigh, W
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// QueueDeviceLow, W
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// QueueDeviceHigh, W
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// SHMSel, W
    pub const SHM_SEL: u64 = 0x0ac;
    /// SHMLenLow, R
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// SHMLenHigh, R
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// SHMBaseLow, R
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// SHMBaseHigh, R
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// ConfigGeneration, R
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Config space, RW
    pub const CONFIG: u64 = 0x100;

    /// InterruptStatus: the device used buffers of a queue.
    pub const INTERRUPT_QUEUE: u32 = 1;
    /// InterruptStatus: the configuration changed.
    pub const INTERRUPT_CONFIG: u32 = 2;
}
