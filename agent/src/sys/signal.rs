//! Signals: receiving SIGCHLD as a file, and a clean slate for programs.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io;

use super::check;

/// Blocks SIGCHLD and returns a non-blocking descriptor that becomes readable when one arrives.
pub fn child_exits() -> io::Result<OwnedFd> {
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: the set lives across the calls; the descriptor is new and nobody else's.
    unsafe {
        check(libc::c_long::from(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        )))?;
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Empties a descriptor from [`child_exits`].
pub fn drain(fd: BorrowedFd<'_>) {
    let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer's length is its own.
    while unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

/// Ignores SIGPIPE: a write to a closed stream returns an error and does not end the agent.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Gives every signal its default action and unblocks all, as a new program expects: ignored and
/// blocked signals outlive execve(2).
pub fn reset_all() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code; the numbers that cannot be set are refused harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = signal_set(&[]);
    // SAFETY: the set lives across the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) };
}

/// Sends a signal by number to a process by descriptor; 0 only asks whether it exists.
pub fn send(pidfd: BorrowedFd<'_>, signal: u32) -> io::Result<()> {
    // SAFETY: integers, and a null pointer for "as kill(2) does".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Sends a signal by number to a process by id.
pub fn send_to_pid(pid: i32, signal: u32) -> io::Result<()> {
    // SAFETY: kill(2) takes integers.
    check(libc::c_long::from(unsafe {
        libc::kill(pid, signal as libc::c_int)
    }))
    .map(drop)
}

/// Sleeps until a signal ends the process.
pub fn pause_until_killed() -> ! {
    loop {
        // SAFETY: pause(2) has no argument.
        unsafe { libc::pause() };
    }
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigemptyset makes the set valid before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}
