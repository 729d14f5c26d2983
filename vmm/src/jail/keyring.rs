//! Keys of the kernel's.

use std::io;

use super::{JailError, step};

/// Leaves the session keyring, which no namespace hides and in which the host's session may have its
/// keys, for an empty one.
#[expect(unsafe_code, reason = "keyctl")]
pub fn leave_session() -> Result<(), JailError> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    const ANONYMOUS: libc::c_long = 0;
    // SAFETY: the call takes a null pointer in place of a name.
    let keyring =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ANONYMOUS) };
    match io::Error::last_os_error() {
        _ if keyring >= 0 => Ok(()),
        // A kernel without keys.
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(step("leave the session keyring")(error)),
    }
}
