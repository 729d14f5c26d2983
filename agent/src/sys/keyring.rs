//! Session keyrings, with keyctl(2).
#![allow(unsafe_code)]

use std::ffi::CStr;

use rustix::io;

use super::check;

/// Gives the calling process a session keyring, so that it shares none with the agent; see
/// keyrings(7). A kernel without keyrings is no error.
pub fn new_session(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a valid string.
    let joined =
        check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) });
    match joined {
        Ok(_) | Err(io::Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
