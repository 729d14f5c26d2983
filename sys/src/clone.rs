//! Making a process with clone3(2), in a control group or new namespaces, and what its child calls
//! until it executes a program; and with clone(2), whose flags a filter of system calls can see,
//! and which makes children that share memory. Nothing here allocates.
#![allow(
    unsafe_code,
    reason = "a child of clone3 continues on a copy of the memory"
)]

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
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

/// What the child of [`run_in_child`] needs for a few system calls.
const CHILD_STACK: usize = 16 * 1024;

/// Runs a function in a child that has the caller's memory and descriptors, and waits until the
/// child has ended. `namespaces` is `CLONE_NEW*`. The caller waits for the child, which keeps them
/// until then. Nothing is copied, so this takes a fraction of what fork(2) does.
///
/// # Safety
///
/// The function makes a few system calls and does not panic: its stack is small, and it has the
/// calling thread's local variables.
pub unsafe fn run_in_child<T, F: FnOnce() -> T>(
    namespaces: c_int,
    function: F,
) -> io::Result<(Pid, T)> {
    extern "C" fn run<T, F: FnOnce() -> T>(call: *mut c_void) -> c_int {
        // SAFETY: the parent passes its call, and does not run while this does.
        let call = unsafe { &mut *call.cast::<(Option<F>, Option<T>)>() };
        call.1 = call.0.take().map(|function| function());
        0
    }
    let mut stack = [MaybeUninit::<u8>::uninit(); CHILD_STACK];
    let mut call = (Some(function), None);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: with CLONE_VFORK the stack, which grows downwards, and the call outlive the child's
    // use of them. The caller keeps the child's side of the contract.
    let pid = check(libc::c_long::from(unsafe {
        libc::clone(
            run::<T, F>,
            stack.as_mut_ptr_range().end.cast(),
            flags | namespaces,
            (&raw mut call).cast(),
        )
    }))?;
    let pid = Pid::from_raw(pid as i32).ok_or(io::Errno::CHILD)?;
    // The child was killed if it has left nothing.
    let result = call.1.ok_or(io::Errno::CHILD)?;
    Ok((pid, result))
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
