//! The results of raw system calls.

use rustix::io::{self, Errno};

/// Turns the return value of `libc::syscall` or of a C library wrapper into a result: a negative
/// value means that `errno` holds the reason.
pub fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value >= 0 {
        Ok(value)
    } else {
        Err(last_errno())
    }
}

/// The calling thread's `errno`.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
