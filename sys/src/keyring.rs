//! Session keyrings, see keyrings(7).

use std::ffi::CStr;

use rustix::io::{self, Errno};

use crate::check;

/// Gives the calling process a session keyring of its own with keyctl(2), so that it shares none
/// with its parent. A kernel without keyrings is no error.
#[expect(unsafe_code, reason = "a system call that rustix lacks")]
pub fn join_new_session(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a NUL-terminated string that lives across the call.
    let joined =
        check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) });
    match joined {
        Ok(_) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
