//! Filters of system calls: rules, the program that they become, and its installation.
#![allow(unsafe_code, reason = "seccomp(2)")]

mod code;
mod condition;
mod program;

use rustix::io;

use crate::syscall::check;

pub use condition::{Comparison, Condition};
pub use program::{Action, Architecture, Call, Program, X32_BIT};

/// `AUDIT_ARCH_X86_64` of `<linux/audit.h>`.
pub const X86_64: u32 = 0xc000_003e;

/// The size of `struct sock_filter`, an instruction of classic BPF.
pub const INSTRUCTION_SIZE: usize = 8;

/// `struct sock_fprog`
#[repr(C)]
struct Installed {
    length: libc::c_ushort,
    instructions: *const u8,
}

/// Installs a filter, given as an array of `struct sock_filter`, on the calling thread.
///
/// `flags` is `SECCOMP_FILTER_FLAG_*`. The filter holds from the return of this call on.
pub fn install(instructions: &[u8], flags: u64) -> io::Result<()> {
    let count = instructions.len() / INSTRUCTION_SIZE;
    let length = libc::c_ushort::try_from(count).map_err(|_| io::Errno::TOOBIG)?;
    let program = Installed {
        length,
        instructions: instructions.as_ptr(),
    };
    // SAFETY: the program points to `length` whole instructions that live across the call; the
    // kernel copies them byte by byte, so their alignment does not matter.
    let installed = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    // With TSYNC a positive value is the thread that could not be synchronized.
    if installed == 0 {
        Ok(())
    } else {
        Err(io::Errno::SRCH)
    }
}
