//! The guest of the probe: 64-bit kernel code that needs nothing but its page tables.

#![expect(unsafe_code, reason = "assembly and the symbols in it")]

use std::arch::global_asm;

/// The port on which the guest says that all went well, or with what it failed, and that its loop
/// has ended.
pub const PORT: u16 = 0xf4;

/// What the guest says if all went well.
pub const OK: u8 = 0;

/// Turns of the guest's loop; each is two instructions.
const TURNS: u64 = 50_000;

/// How many instructions lie between what the guest says first and what it says last.
pub const INSTRUCTIONS: u64 = 2 * TURNS;

global_asm!(
    ".pushsection .rodata",
    "rvm_probe_start:",
    // Compare and exchange 16 bytes.
    "    xor eax, eax",
    "    xor edx, edx",
    "    mov ebx, 1",
    "    mov ecx, 2",
    "    mov edi, 0x3000",
    "    lock cmpxchg16b [rdi]",
    "    mov al, 1",
    "    jnz 4f",
    "    cmp qword ptr [rdi + 8], 2",
    "    jne 4f",
    // Save and restore the extended state.
    "    mov rax, cr4",
    "    or eax, 0x40200",
    "    mov cr4, rax",
    "    xor ecx, ecx",
    "    xor edx, edx",
    "    mov eax, 3",
    "    xsetbv",
    "    mov edi, 0x4000",
    "    xsave [rdi]",
    "    xrstor [rdi]",
    // Take a breakpoint.
    "    xor ebx, ebx",
    "    int3",
    "    mov al, 2",
    "    cmp ebx, 7",
    "    jne 4f",
    "    mov al, {ok}",
    "4:  out {port}, al",
    // Be timed.
    "    mov ecx, {turns}",
    "2:  dec ecx",
    "    jnz 2b",
    "    out {port}, al",
    ".balign 16",
    "rvm_probe_breakpoint:",
    "    mov ebx, 7",
    "    iretq",
    "rvm_probe_end:",
    ".popsection",
    turns = const TURNS,
    ok = const OK,
    port = const PORT,
);

unsafe extern "C" {
    static rvm_probe_start: u8;
    static rvm_probe_breakpoint: u8;
    static rvm_probe_end: u8;
}

/// The guest's code, and where in it the breakpoint handler lies.
pub fn code() -> (&'static [u8], usize) {
    // SAFETY: the three symbols lie in this order in one read-only section, so what is between the
    // first and the last is one object of bytes that never change.
    unsafe {
        let start = &raw const rvm_probe_start;
        let length = (&raw const rvm_probe_end).offset_from_unsigned(start);
        let handler = (&raw const rvm_probe_breakpoint).offset_from_unsigned(start);
        (std::slice::from_raw_parts(start, length), handler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_page_and_has_a_handler() {
        let (code, handler) = code();
        assert!(code.len() < 0x1000 && handler < code.len());
        assert_eq!(handler % 16, 0);
    }
}
