//! The guest of the probe: 64-bit kernel code that needs nothing but its page tables.

#![expect(unsafe_code, reason = "assembly and the symbols in it")]

use std::arch::global_asm;

/// The port to which the guest writes the result of its tests, and then the end of its loop.
pub const PORT: u16 = 0xf4;

/// The guest's result if all tests passed.
pub const OK: u8 = 0;

/// Iterations of the guest's loop, of two instructions each.
const ITERATIONS: u64 = 50_000;

/// The number of instructions between the guest's first and last write to [`PORT`].
pub const INSTRUCTIONS: u64 = 2 * ITERATIONS;

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
    // The timed loop.
    "    mov ecx, {iterations}",
    "2:  dec ecx",
    "    jnz 2b",
    "    out {port}, al",
    ".balign 16",
    "rvm_probe_breakpoint:",
    "    mov ebx, 7",
    "    iretq",
    "rvm_probe_end:",
    ".popsection",
    iterations = const ITERATIONS,
    ok = const OK,
    port = const PORT,
);

unsafe extern "C" {
    static rvm_probe_start: u8;
    static rvm_probe_breakpoint: u8;
    static rvm_probe_end: u8;
}

/// The guest's code, and the offset of the breakpoint handler in it.
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
