//! Attributes of mounts, mount_setattr(2), which rustix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` of `<linux/mount.h>`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_SHARED` and the like; 0 leaves the propagation as it is.
    pub propagation: u64,
    /// The descriptor of a user namespace, with `MOUNT_ATTR_IDMAP`.
    pub userns: u64,
}

impl MountAttributes {
    /// Gives them to a mount, and with `recursive` to all that are mounted below it.
    ///
    /// Fails with ENOSYS before Linux 5.12.
    #[expect(unsafe_code, reason = "a system call that rustix lacks")]
    pub fn apply(&self, mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
        let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the path is an empty string, and `self` is as large as is said and lives across the
        // call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(self),
                size_of::<Self>(),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
