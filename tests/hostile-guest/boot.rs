//! From the machine's first instruction to Rust code. `rvm-vmm` starts a kernel in 64-bit mode,
//! with the boot parameters in RSI; QEMU starts it in 32-bit mode, with its start info in EBX, at
//! the address that a note in the file names (PVH).
//!
//! After [`crate::kernel`] the guest goes on in ring 3, which may use every address and every port.
//! A processor whose kernel mode is emulated runs that at its full speed.

use std::arch::global_asm;

use crate::cpu::{get8, get32, get64};

/// struct boot_params, and struct hvm_start_info; 0 if the host gave none.
#[unsafe(no_mangle)]
static mut GUEST_BOOT_PARAMS: u64 = 0;
#[unsafe(no_mangle)]
static mut GUEST_START_INFO: u64 = 0;

global_asm!(
    // XEN_ELFNOTE_PHYS32_ENTRY
    ".pushsection .note.Xen, \"a\", @note",
    "    .balign 4",
    "    .long 4, 8, 18",
    "    .asciz \"Xen\"",
    "    .quad guest_pvh",
    ".popsection",
    ".pushsection .text",
    ".code32",
    "guest_pvh:",
    "    mov dword ptr [GUEST_START_INFO], ebx",
    "    mov eax, 0x20", // CR4.PAE
    "    mov cr4, eax",
    "    mov eax, offset guest_tables",
    "    mov cr3, eax",
    "    mov ecx, 0xc0000080", // EFER.LME
    "    xor edx, edx",
    "    mov eax, 0x100",
    "    wrmsr",
    "    mov eax, 0x80000011", // CR0.PG and PE
    "    mov cr0, eax",
    "    lgdt [guest_gdtr]",
    "    mov esp, offset guest_stack",
    "    push 8",
    "    mov eax, offset guest_long",
    "    push eax",
    "    retf",
    ".code64",
    ".globl _start",
    "_start:",
    "    mov [rip + GUEST_BOOT_PARAMS], rsi",
    "    mov eax, offset guest_tables",
    "    mov cr3, rax",
    "    lgdt [rip + guest_gdtr]",
    "guest_long:",
    "    mov esp, offset guest_stack",
    "    mov rax, cr4",
    "    or eax, 0x600", // CR4.OSFXSR and OSXMMEXCPT
    "    mov cr4, rax",
    "    mov eax, 0x80000013", // CR0.MP, without EM
    "    mov cr0, rax",
    "    fninit",
    "    mov eax, 0x10",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    "    xor ebp, ebp",
    "    call {kernel}",
    // To ring 3, with I/O privilege level 3.
    "    mov eax, offset guest_stack",
    "    push 0x1b",
    "    push rax",
    "    push 0x3002",
    "    push 0x23",
    "    mov eax, offset guest_user",
    "    push rax",
    "    iretq",
    "guest_user:",
    "    mov eax, 0x1b",
    "    mov ds, eax",
    "    mov es, eax",
    "    xor ebp, ebp",
    "    call {user}",
    "    ud2",
    ".popsection",
    ".pushsection .data",
    // The first 8 GiB in pages of 2 MiB, each address for itself, for both rings.
    "    .balign 4096",
    ".globl guest_tables",
    "guest_tables:",
    "    .quad guest_directories + 7",
    "    .fill 511, 8, 0",
    "guest_directories:",
    "    .set number, 0",
    "    .rept 8",
    "    .quad guest_pages + number * 0x1000 + 7",
    "    .set number, number + 1",
    "    .endr",
    "    .fill 504, 8, 0",
    "guest_pages:",
    "    .set number, 0",
    "    .rept 4096",
    "    .quad number * 0x200000 + 0x87",
    "    .set number, number + 1",
    "    .endr",
    ".globl guest_gdt",
    "guest_gdt:",
    "    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff",
    "guest_gdtr:",
    "    .word 39",
    "    .quad guest_gdt",
    ".popsection",
    ".pushsection .bss",
    "    .balign 16",
    "    .skip 0x40000",
    "guest_stack:",
    ".popsection",
    kernel = sym crate::kernel,
    user = sym crate::user,
);

/// The kernel's command line, from wherever the host has put it.
pub fn command_line() -> &'static str {
    /// The place of `hdr.cmd_line_ptr` in struct boot_params.
    const IN_BOOT_PARAMS: u64 = 0x228;
    /// The place of `cmdline_paddr` in struct hvm_start_info.
    const IN_START_INFO: u64 = 0x18;
    /// The longest line that a Linux kernel takes.
    const MAX: u64 = 2048;
    // SAFETY: the code above wrote them before any of this ran, and nothing does later.
    let (params, info) = unsafe { (GUEST_BOOT_PARAMS, GUEST_START_INFO) };
    let line = match params {
        0 => get64(info + IN_START_INFO),
        _ => get32(params + IN_BOOT_PARAMS).into(),
    };
    let is_text = |place: &u64| get8(line + place) != 0;
    let length = (0..MAX).take_while(is_text).count();
    // SAFETY: the line ends after as many bytes, in memory that this guest leaves alone.
    let text = unsafe { std::slice::from_raw_parts(line as *const u8, length) };
    std::str::from_utf8(text).unwrap_or_default()
}
