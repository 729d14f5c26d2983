//! The state in which a vCPU starts. The boot CPU starts in 64-bit mode with identity-mapped
//! memory, as the kernel's 64-bit boot protocol demands (Documentation/arch/x86/boot.rst). The
//! other CPUs wait for INIT and SIPI and need only their model-specific registers.

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{layout, state};
use crate::memory::GuestMemory;

/// A vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("cannot access a vCPU's {what}")]
    Kvm {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM took fewer model-specific registers than it was given.
    #[error("the host's KVM does not know model-specific register {0:#x}")]
    Msr(u32),
    #[error("cannot write the boot CPU's tables")]
    Memory(#[from] GuestMemoryError),
}

pub(super) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegisterError {
    move |source| RegisterError::Kvm { what, source }
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Writes the page tables and the global descriptor table of the boot CPU.
pub fn write_tables(memory: &GuestMemory) -> Result<(), RegisterError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |level: u64| layout::PAGE_TABLES + level * 0x1000;
    // One entry for the first 512 GiB, one for the first GiB, and that GiB in pages of 2 MiB.
    memory.write_obj(table(1) | PRESENT_WRITABLE, GuestAddress(table(0)))?;
    memory.write_obj(table(2) | PRESENT_WRITABLE, GuestAddress(table(1)))?;
    let pages: Vec<u8> = (0..512_u64)
        .flat_map(|index| (index << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes())
        .collect();
    memory.write_slice(&pages, GuestAddress(table(2)))?;
    for (index, descriptor) in [0, descriptor(&code()), descriptor(&data())]
        .iter()
        .enumerate()
    {
        memory.write_obj(*descriptor, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    Ok(())
}

/// Sets the boot CPU to start at `entry` with the boot parameters in RSI.
pub fn set_boot(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), RegisterError> {
    let regs = kvm_regs {
        rip: entry.0,
        rsi: layout::BOOT_PARAMS,
        rsp: layout::STACK,
        rbp: layout::STACK,
        // Bit 1 is always set; interrupts are off.
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(refused("registers"))?;
    let mut sregs = vcpu.get_sregs().map_err(refused("control registers"))?;
    sregs.cs = code();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data();
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 3 * 8 - 1;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(refused("control registers"))
}

/// Sets the state that all CPUs share: floating point, model-specific registers, local APIC pins.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(refused("floating point registers"))?;
    set_msrs(vcpu)?;
    let mut apic = vcpu.get_lapic().map_err(refused("local APIC"))?;
    connect_pins(&mut apic);
    vcpu.set_lapic(&apic).map_err(refused("local APIC"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRING: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const WRITE_BACK: u64 = 6;
    let entries = [
        (IA32_MISC_ENABLE, FAST_STRING),
        (MTRR_DEF_TYPE, MTRR_ENABLE | WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    state::set_msrs(vcpu, &entries)
}

/// Sets the pins as firmware leaves them: LINT0 for the 8259 PIC, LINT1 for NMI.
fn connect_pins(apic: &mut kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVER_NMI: u8 = 4;
    const DELIVER_EXT_INT: u8 = 7;
    for (register, mode) in [(LVT_LINT0, DELIVER_EXT_INT), (LVT_LINT1, DELIVER_NMI)] {
        // Bits 10:8, the delivery mode.
        let byte = &mut apic.regs[register + 1];
        *byte = (byte.cast_unsigned() & !7 | mode).cast_signed();
    }
}

fn code() -> kvm_segment {
    // Execute, read, accessed.
    kvm_segment {
        type_: 0xb,
        selector: 8,
        l: 1,
        ..flat()
    }
}

fn data() -> kvm_segment {
    // Read, write, accessed.
    kvm_segment {
        type_: 3,
        selector: 16,
        db: 1,
        ..flat()
    }
}

fn flat() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// A flat segment's entry in the global descriptor table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_are_the_usual_flat_ones() {
        assert_eq!(descriptor(&code()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_page_tables_map_the_first_gib_to_itself() {
        let memory = crate::memory::map(2).unwrap();
        write_tables(&memory).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(read(layout::PAGE_TABLES), layout::PAGE_TABLES + 0x1003);
        assert_eq!(read(layout::PAGE_TABLES + 0x2000 + 8), 0x20_0083);
    }

    #[test]
    fn the_pins_have_their_delivery_modes() {
        let mut apic = kvm_lapic_state::default();
        connect_pins(&mut apic);
        assert_eq!((apic.regs[0x351], apic.regs[0x361]), (7, 4));
    }
}
