//! The session keyring (keyrings(7)).

use std::io;

use super::{JailError, step};

/// Replaces the session keyring by an empty one. The host's session may keep keys in it, and no
/// namespace hides it.
#[expect(unsafe_code, reason = "keyctl")]
pub fn leave_session() -> Result<(), JailError> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    const ANONYMOUS: libc::c_long = 0;
    // SAFETY: a null pointer is a valid name and stands for an anonymous keyring.
    let keyring =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ANONYMOUS) };
    match io::Error::last_os_error() {
        _ if keyring >= 0 => Ok(()),
        // The kernel was built without keyrings.
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(step("leave the session keyring")(error)),
    }
}
