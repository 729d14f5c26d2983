//! Attributes, propagation and id maps of mounts: mount_setattr(2), from Linux 5.12 on.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

use crate::check;

/// `MOUNT_ATTR_*` of `<linux/mount.h>`, as far as they are used.
pub mod attr {
    /// No writing through this mount.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits have no effect.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The field that says how access times are kept; 0 is relatime.
    pub const ATIME_MASK: u64 = 0x70;
    /// Access times are never kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always kept.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Ids are mapped by a user namespace.
    pub(super) const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// Attributes to set and to clear, as in [`attr`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AttrChange {
    /// Applied after `clear`.
    pub set: u64,
    /// [`attr::ATIME_MASK`] has to be here whole when `set` has a bit of it.
    pub clear: u64,
}

impl AttrChange {
    /// Makes a mount read-only.
    pub const READ_ONLY: Self = Self {
        set: attr::RDONLY,
        clear: 0,
    };

    /// Forbids to open the device nodes of a mount.
    pub const NO_DEVICES: Self = Self {
        set: attr::NODEV,
        clear: 0,
    };

    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `struct mount_attr` of `<linux/mount.h>`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Changes the attributes of the mount that `mount` refers to, and of all below it if `recursive`.
pub fn change_attributes(
    mount: BorrowedFd<'_>,
    change: AttrChange,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr {
        set: change.set,
        clear: change.clear,
        ..MountAttr::default()
    };
    set_attributes(mount, &attr, recursive)
}

/// Sets the propagation (one of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`).
pub fn set_propagation(mount: BorrowedFd<'_>, kind: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        propagation: kind,
        ..MountAttr::default()
    };
    set_attributes(mount, &attr, recursive)
}

/// Maps the ids of a detached mount by a user namespace, and of all below it if `recursive`.
pub fn map_ids(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        set: attr::IDMAP,
        userns: u64::from(userns.as_raw_fd().unsigned_abs()),
        ..MountAttr::default()
    };
    set_attributes(mount, &attr, recursive)
}

#[expect(unsafe_code, reason = "a system call that rustix lacks")]
fn set_attributes(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string, and `attr` lives across the call with its own size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
