//! What a child of clone3(2) does before it executes its program, and entering namespaces.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io;
use rustix::process::Pid;
pub use rvm_sys::clone::{CloneRequest, Cloned, clone_process, copy_fd, execute, exit_now};

use super::check;

/// Executes the program behind a descriptor. Returns only on failure.
///
/// # Safety
///
/// `arguments` and `environment` are arrays of pointers to NUL-terminated strings and end in null.
pub unsafe fn execute_fd(
    program: RawFd,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Errno {
    // SAFETY: the empty path is a valid string, and the caller vouches for the arrays.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    super::last_errno()
}

/// Enters namespaces: with a namespace's own descriptor those of `flags` must match it; with a
/// pidfd all of `flags` are taken from that process at once.
pub fn enter_namespaces(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: setns(2) takes two integers.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags as libc::c_int) }).map(drop)
}

/// Marks every descriptor from `first` on to be closed on exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: only marks descriptors; none is closed under its owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Becomes root of the current user namespace in every id, without supplementary groups. Raw
/// calls, for the child of [`clone_process`]: libc's own would signal the other threads.
pub fn become_root() -> io::Result<()> {
    // SAFETY: the calls take integers and, for the empty group list, a null pointer.
    unsafe {
        check(libc::syscall(
            libc::SYS_setgroups,
            0,
            std::ptr::null::<libc::gid_t>(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    Ok(())
}

/// Reads one byte; an end of file is an error. Allocates nothing.
pub fn read_byte(fd: RawFd) -> io::Result<u8> {
    let mut byte = 0_u8;
    // SAFETY: the buffer is one byte long and lives across the call.
    match check(unsafe { libc::syscall(libc::SYS_read, fd, &raw mut byte, 1_usize) })? {
        1 => Ok(byte),
        _ => Err(io::Errno::PIPE),
    }
}

/// Writes a process id to a pipe. Allocates nothing.
pub fn write_pid(fd: RawFd, pid: Pid) -> io::Result<()> {
    let bytes = pid.as_raw_nonzero().get().to_ne_bytes();
    // SAFETY: the buffer lives across the call, and its length is its own.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }).map(drop)
}
