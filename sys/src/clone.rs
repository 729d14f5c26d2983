//! Making a process with clone3(2), in a control group or new namespaces, and what its child calls
//! until it executes a program; and with clone(2), whose flags a filter of system calls can see.
//! Nothing here allocates.
#![allow(
    unsafe_code,
    reason = "a child of clone3 continues on a copy of the memory"
)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io;
use rustix::process::Pid;

use crate::syscall::{check, last_errno};

/// The arguments of clone3(2).
#[derive(Default)]
pub struct CloneRequest<'fd> {
    /// `CLONE_NEW*` and `CLONE_PARENT`, as in `<linux/sched.h>`.
    pub flags: u64,
    /// The directory of the cgroup to start in; `None` stays in the caller's.
    pub cgroup: Option<BorrowedFd<'fd>>,
}

/// `<linux/sched.h>`; libc's has the wrong width.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// The side of the call that this is.
pub enum Cloned {
    /// The new process.
    Child,
    /// The calling process, and its child.
    Parent {
        /// In the caller's pid namespace.
        pid: Pid,
        /// Closed on exec.
        pidfd: OwnedFd,
    },
}

/// Clones the calling process: the memory is copied on write and the child goes on from here.
///
/// # Safety
///
/// In a process with more than one thread the child may only make system calls: locks that another
/// thread held, the allocator's included, stay held in it for ever. It must end in execve(2) or
/// [`exit_now`].
pub unsafe fn clone_process(request: &CloneRequest<'_>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = request.flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // With CLONE_PARENT the signal is the caller's own, and naming one is refused.
    if request.flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args lives across the call, says its own size and names no stack, so the child runs
    // on a copy of this one. The caller keeps the child's side of the contract.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Cloned::Child),
        Some(pid) => {
            // SAFETY: the kernel has just put a new descriptor there, which nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// The flags with which [`copy_process`] calls clone(2): nothing is shared, there are no new
/// namespaces, and the child's parent gets a descriptor of it.
pub const COPY_FLAGS: u64 = (libc::CLONE_PIDFD | libc::SIGCHLD) as u64;

/// As [`clone_process`] with no flag, by the one form of clone(2) that a thread may be allowed
/// which may not make namespaces.
///
/// # Safety
///
/// As of [`clone_process`].
pub unsafe fn copy_process() -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: the kernel writes to the descriptor's variable, which lives across the call. There is
    // no stack, so the child runs on a copy of this one. The caller keeps the child's side of the
    // contract.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            COPY_FLAGS,
            0_u64,
            &raw mut pidfd,
            0_u64,
            0_u64,
        )
    })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Cloned::Child),
        Some(pid) => {
            // SAFETY: the kernel has just put a new descriptor there, which nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Ends the process without running any destructor or exit handler.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// Executes a program. Returns only on failure.
///
/// # Safety
///
/// `arguments` and `environment` are arrays of pointers to NUL-terminated strings and end in null.
pub unsafe fn execute(
    path: &CStr,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Errno {
    // SAFETY: the caller vouches for the arrays.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    last_errno()
}

/// Duplicates `from` at the number `to`, without close-on-exec.
pub fn copy_fd(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: the caller is a child that is about to execute and owns no descriptors any more.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) }).map(drop)
}
