//! The init process of a pod whose sandbox has no container of its own: holds the namespaces that
//! the pod's containers share, has the kernel reap their orphans, and does nothing else.
//!
//! It makes two system calls and has no library, so that it costs a few pages of memory and needs
//! no image. `build.rs` compiles it.

#![no_std]
#![no_main]

use core::arch::asm;
use core::panic::PanicInfo;

/// Numbers of system calls on x86-64.
const RT_SIGACTION: usize = 13;
const PAUSE: usize = 34;

const SIGCHLD: usize = 17;
const SIG_IGN: usize = 1;
const SA_NOCLDWAIT: usize = 2;

/// The kernel's `struct sigaction`, which is not the C library's.
#[repr(C)]
struct SigAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

/// With this action the kernel reaps children whose exit nobody waits for.
static REAP: SigAction = SigAction {
    handler: SIG_IGN,
    flags: SA_NOCLDWAIT,
    restorer: 0,
    mask: 0,
};

/// The kernel enters the program here.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let action = &raw const REAP as usize;
    // SAFETY: rt_sigaction(2) reads the action and its mask of this size, and writes nothing.
    unsafe { system_call(RT_SIGACTION, [SIGCHLD, action, 0, size_of::<u64>()]) };
    loop {
        // SAFETY: pause(2) takes nothing and changes nothing.
        unsafe { system_call(PAUSE, [0; 4]) };
    }
}

/// # Safety
///
/// The arguments must be what the system call takes.
unsafe fn system_call(number: usize, arguments: [usize; 4]) {
    // SAFETY: the kernel takes a system call's number and arguments in these registers, and changes
    // rax, rcx and r11; what else the call does is the caller's affair.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => _,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            out("rcx") _,
            out("r11") _,
        );
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
