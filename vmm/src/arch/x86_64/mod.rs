//! x86-64: the address map of the guest, its CPU tables, and the state in which a vCPU starts.

pub mod cpuid;
pub mod mptable;
pub mod registers;
pub mod state;

/// The guest-physical address map: the first MiB, and the fixed addresses above it.
pub mod layout {
    /// The boot CPU's global descriptor table.
    pub const GDT: u64 = 0x500;
    /// struct boot_params, the "zero page".
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// The initial stack pointer of the boot CPU.
    pub const STACK: u64 = 0x8ff0;
    /// Top-level page table, followed by one table of each lower level.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The kernel command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// The size of the command line in bytes, with the terminating zero (COMMAND_LINE_SIZE).
    pub const CMDLINE_MAX: usize = 2048;
    /// The MP table, and the end of usable low memory. The guest looks for the table in the last
    /// KiB below 640 KiB.
    pub const MP_TABLE: u64 = 0x9_fc00;
    /// The start of usable memory above 640 KiB, and the lowest address of the kernel.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
    /// The window of the first virtio-mmio slot; the others follow it without gaps.
    pub const MMIO_START: u64 = 0xd000_0000;
    /// The I/O APIC.
    pub const IO_APIC: u32 = 0xfec0_0000;
    /// The local APIC of every CPU.
    pub const LOCAL_APIC: u32 = 0xfee0_0000;
    /// One page, which KVM needs on Intel (KVM_SET_IDENTITY_MAP_ADDR).
    pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
    /// Three pages, which KVM needs on Intel (KVM_SET_TSS_ADDR).
    pub const KVM_TSS: usize = 0xfffb_d000;
}

/// Interrupts of virtio-mmio slots, by pin of the I/O APIC. On a PC the pins below carry the timer,
/// the keyboard and the serial ports.
pub const DEVICE_INTERRUPTS: std::ops::RangeInclusive<u32> = 5..=23;

/// The most virtual CPUs. An APIC id has 8 bits: one id is the I/O APIC's, 0xff is the broadcast,
/// and one stays free.
pub const MAX_VCPUS: u8 = 253;
