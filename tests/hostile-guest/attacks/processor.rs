//! What needs no device.

use std::arch::asm;

use rvm_protocol::POWER_OFF_PORT;

use super::rings::access;
use crate::cpu::{SERIAL, in8, in16, in32, out8, out16, out32};
use crate::guest::Guest;

/// The ports of a PC's interrupt controllers and its timer, which end a guest that has no handlers.
const INTERRUPTS: [std::ops::Range<u16>; 4] = [0x20..0x22, 0x40..0x48, 0xa0..0xa2, 0x4d0..0x4d2];

/// Every port in every width, but the one that switches the machine off, and those that reset it.
pub fn ports(guest: &mut Guest) {
    for _ in 0..16 {
        let (port, value) = (guest.dice.roll() as u16, guest.dice.roll());
        let is_spared = port == POWER_OFF_PORT
            || (0x60..0x70).contains(&port)
            || (0x90..0x94).contains(&port)
            || (SERIAL..SERIAL + 8).contains(&port)
            || (0xcf8..0xd00).contains(&port)
            || INTERRUPTS.iter().any(|ports| ports.contains(&port));
        match guest.dice.below(6) {
            0 => _ = in8(port),
            1 => _ = in16(port),
            2 => _ = in32(port),
            _ if is_spared => {}
            3 => out8(port, value as u8),
            4 => out16(port, value as u16),
            _ => out32(port, value as u32),
        }
    }
}

/// Addresses where nothing is, and the edges of what is there.
pub fn holes(guest: &mut Guest) {
    let dice = &mut guest.dice;
    for _ in 0..16 {
        let base = dice.one_of(&[
            0xa_0000,
            0xd000_0000,
            0xd001_3000,
            0xe000_0000,
            0xfeb0_1000,
            0xfec0_0000,
            0xfed0_0000,
            0xfff0_0000,
            0x1_8000_0000,
            0x1_ffff_0000,
        ]);
        // Only reads where a write could end the guest.
        let kinds = if base == 0xd000_0000 || base == 0xfec0_0000 {
            4
        } else {
            8
        };
        let (kind, value) = (dice.below(kinds), dice.roll());
        access(base + dice.below(0xff0), kind, value);
    }
}

/// Every leaf of CPUID.
pub fn cpuid(guest: &mut Guest) {
    for _ in 0..16 {
        let base = guest
            .dice
            .one_of(&[0, 0x4000_0000, 0x8000_0000, 0xc000_0000, u32::MAX - 64]);
        let leaf = base + guest.dice.below(64) as u32;
        std::hint::black_box(std::arch::x86_64::__cpuid_count(
            leaf,
            guest.dice.below(8) as u32,
        ));
    }
}

const LOCAL_APIC: u64 = 0xfee0_0000;

/// Interrupts to every processor and to none, by every way of delivery.
pub fn interrupts(guest: &mut Guest) {
    const COMMAND: u64 = LOCAL_APIC + 0x300;
    let dice = &mut guest.dice;
    for _ in 0..16 {
        // Not SMI, INIT and NMI to itself; those that are masked wait for ever.
        let target = dice.one_of(&[1, 2, 0x7f, 0xfe]);
        let delivery = dice.one_of(&[0, 1, 4, 5, 6]);
        crate::cpu::put32(COMMAND + 0x10, target << 24);
        crate::cpu::put32(COMMAND, delivery << 8 | 1 << 14 | dice.below(256) as u32);
        // To itself.
        crate::cpu::put32(COMMAND, 1 << 18 | 1 << 14 | (32 + dice.below(224) as u32));
    }
}

/// The processor's own timer, as fast as it goes.
pub fn timer(_: &mut Guest) {
    for _ in 0..16 {
        crate::cpu::put32(LOCAL_APIC + 0x3e0, 0xb);
        crate::cpu::put32(LOCAL_APIC + 0x320, 0x2_00ff);
        crate::cpu::put32(LOCAL_APIC + 0x380, 1);
    }
}

/// Every model-specific register, but the one that holds the processor's mode.
pub fn model_specific_registers(guest: &mut Guest) {
    const EFER: u32 = 0xc000_0080;
    let dice = &mut guest.dice;
    let base = dice.one_of(&[
        0,
        0x100,
        0x200,
        0x400,
        0x800,
        0x4000_0000,
        0x4b56_4d00,
        0xc000_0000,
        0xc001_0000,
        0xffff_0000,
    ]);
    let register = base + dice.below(0x180) as u32;
    let value = dice.one_of(&[0, 1, u32::MAX]);
    // SAFETY: a register that cannot be accessed is an exception, which is handled.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") _, out("edx") _);
        if register != EFER {
            asm!("wrmsr", in("ecx") register, in("eax") value, in("edx") value);
        }
    }
}

/// Every call of a hypervisor, by the instructions of Intel and AMD.
pub fn hypercalls(guest: &mut Guest) {
    let (number, argument) = (guest.dice.below(64), guest.dice.roll());
    // SAFETY: what the processor does not know is an exception, which is handled.
    unsafe {
        asm!("push rbx", "mov rbx, {0}", "vmcall", "pop rbx", in(reg) argument,
            inout("rax") number => _, in("rcx") argument, in("rdx") argument, in("rsi") argument);
        asm!("push rbx", "mov rbx, {0}", "vmmcall", "pop rbx", in(reg) argument,
            inout("rax") number => _, in("rcx") argument, in("rdx") argument, in("rsi") argument);
    }
}

/// Halts, and no interrupt wakes the processor.
pub fn halt(_: &mut Guest) {
    crate::cpu::print("\nrounds 1\n");
    // SAFETY: it changes no memory.
    unsafe { asm!("cli", "hlt") }
}

/// An exception that nothing handles.
pub fn triple_fault(_: &mut Guest) {
    // SAFETY: it ends the guest.
    unsafe { asm!("ud2") }
}
