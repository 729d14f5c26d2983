//! x86-64: where things lie in the guest's address space, and the state a CPU starts in.

pub mod cpuid;
pub mod mptable;
pub mod registers;

/// The address space below the first MiB, and what is fixed above.
pub mod layout {
    /// The boot CPU's descriptor table.
    pub const GDT: u64 = 0x500;
    /// struct boot_params, the "zero page".
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// The boot CPU's stack, growing down.
    pub const STACK: u64 = 0x8ff0;
    /// Top-level page table, followed by one table of each lower level.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// The kernel command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// The most bytes of it, with the terminating zero (COMMAND_LINE_SIZE).
    pub const CMDLINE_MAX: usize = 2048;
    /// Where usable memory ends, and the tables that the firmware of a PC would leave begin. The
    /// guest looks for the MP table in the last KiB below 640 KiB.
    pub const MP_TABLE: u64 = 0x9_fc00;
    /// Where usable memory goes on, and the kernel may be loaded.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
    /// The first device window; one of [`crate::virtio::mmio::WINDOW`] bytes each.
    pub const MMIO_START: u64 = 0xd000_0000;
    /// The I/O interrupt controller.
    pub const IO_APIC: u32 = 0xfec0_0000;
    /// Every CPU's own interrupt controller.
    pub const LOCAL_APIC: u32 = 0xfee0_0000;
    /// Three pages that KVM on Intel needs for itself, and one before them.
    pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
    /// See [`KVM_IDENTITY_MAP`].
    pub const KVM_TSS: usize = 0xfffb_d000;
}

/// Interrupts that devices may have, by pin of the I/O APIC. The pins below carry, or on a PC
/// would carry, the timer, the keyboard and the serial ports.
pub const DEVICE_INTERRUPTS: std::ops::RangeInclusive<u32> = 5..=23;

/// The most virtual CPUs: APIC ids are 8 bits, two of them taken, and the highest means all.
pub const MAX_VCPUS: u8 = 253;
