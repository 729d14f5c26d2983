//! A second processor, which changes what the first has given to a device while the device reads
//! it. The first one aims it.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::attacks::{ADDRESSES, LENGTHS};
use crate::cpu::{Dice, copy, put16, put32, put64};
use crate::guest::Guest;
use crate::virtio::{BUFFERS, Queue, describe};

/// The page below 1 MiB at which the processor starts, in real mode.
const START: u64 = 0x6_0000;

/// Its first instructions fit into as many bytes.
const START_BYTES: usize = 256;

global_asm!(
    ".pushsection .text",
    ".code16",
    ".globl guest_second",
    "guest_second:",
    "    cli",
    "    mov ax, cs",
    "    mov ds, ax",
    "    mov eax, 0x20", // CR4.PAE
    "    mov cr4, eax",
    "    mov eax, offset guest_tables",
    "    mov cr3, eax",
    "    mov ecx, 0xc0000080", // EFER.LME
    "    xor edx, edx",
    "    mov eax, 0x100",
    "    wrmsr",
    "    mov eax, 0x80000013", // CR0.PG, MP and PE
    "    mov cr0, eax",
    // LGDT of a place in this page, and a far jump to 64-bit mode.
    "    .byte 0x0f, 0x01, 0x16",
    "    .word guest_second_gdtr - guest_second",
    "    .byte 0x66, 0xea",
    "    .long guest_second_long",
    "    .word 8",
    "guest_second_gdtr:",
    "    .word 39",
    "    .long guest_gdt",
    ".code64",
    "guest_second_long:",
    "    mov eax, 0x10",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    "    mov esp, offset guest_second_stack",
    "    mov rax, cr4",
    "    or eax, 0x600", // CR4.OSFXSR and OSXMMEXCPT
    "    mov cr4, rax",
    "    fninit",
    // To ring 3, as the first one.
    "    mov eax, offset guest_second_stack",
    "    push 0x1b",
    "    push rax",
    "    push 0x3002",
    "    push 0x23",
    "    mov eax, offset guest_second_user",
    "    push rax",
    "    iretq",
    "guest_second_user:",
    "    mov eax, 0x1b",
    "    mov ds, eax",
    "    mov es, eax",
    "    xor ebp, ebp",
    "    call {second}",
    "    ud2",
    ".popsection",
    ".pushsection .bss",
    "    .balign 16",
    "    .skip 0x4000",
    "guest_second_stack:",
    ".popsection",
    second = sym second,
);

unsafe extern "C" {
    fn guest_second();
}

/// How many changes it has made.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// What it changes: the descriptors, the available and the used ring of a queue with so many
/// entries; 0 entries leave the buffers alone.
static DESCRIPTORS: AtomicU64 = AtomicU64::new(0);
static AVAILABLE: AtomicU64 = AtomicU64::new(0);
static USED: AtomicU64 = AtomicU64::new(0);
static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// The part of the buffers that it changes, in words: headers of requests.
const HEADERS: u64 = 8;

/// Starts the processor, unless it runs. Returns once it does, so that a machine without a second
/// one never counts a round.
pub fn start(guest: &mut Guest) {
    const COMMAND: u64 = 0xfee0_0300;
    const FIRST_OTHER: u32 = 1;
    if TURNS.load(Ordering::Relaxed) > 0 {
        return;
    }
    copy(START, guest_second as *const () as u64, START_BYTES);
    put32(COMMAND + 0x10, FIRST_OTHER << 24);
    put32(COMMAND, 0x4500); // INIT
    loop {
        for _ in 0..10_000 {
            guest.agent.serve();
        }
        if TURNS.load(Ordering::Relaxed) > 0 {
            return;
        }
        // The start of a processor that runs is ignored.
        put32(COMMAND, 0x4600 | (START >> 12) as u32);
    }
}

/// Has it change a queue, and the buffers.
pub fn aim(queue: &Queue) {
    ENTRIES.store(0, Ordering::SeqCst);
    DESCRIPTORS.store(queue.descriptor(0), Ordering::SeqCst);
    AVAILABLE.store(queue.available(), Ordering::SeqCst);
    USED.store(queue.used(), Ordering::SeqCst);
    ENTRIES.store(queue.entries.into(), Ordering::SeqCst);
}

extern "C" fn second() -> ! {
    let mut dice = Dice::new();
    loop {
        TURNS.fetch_add(1, Ordering::Relaxed);
        let word = BUFFERS + 4 * dice.below(2 * HEADERS);
        put32(word, dice.one_of(&[0, 1, 16, 40, 0x1000, u32::MAX]));
        let entries = ENTRIES.load(Ordering::SeqCst);
        if entries == 0 {
            continue;
        }
        let index = dice.below(entries);
        let available = AVAILABLE.load(Ordering::SeqCst);
        match dice.below(5) {
            0 => put16(available + 2, dice.roll() as u16),
            1 => put16(available + 4 + 2 * index, dice.roll() as u16),
            2 => put16(USED.load(Ordering::SeqCst) + 2, dice.roll() as u16),
            3 => put64(BUFFERS + 8 * dice.below(0x1000), dice.roll()),
            _ => {
                let (address, length) = (dice.one_of(&ADDRESSES), dice.one_of(&LENGTHS));
                let (flags, next) = (dice.roll() as u16 & 7, dice.below(20) as u16);
                let place = DESCRIPTORS.load(Ordering::SeqCst) + 16 * index;
                describe(place, address, length, flags, next);
            }
        }
    }
}
