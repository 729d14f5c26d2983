//! mount_setattr(2), and the flags of the file-descriptor-based mount calls.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

use super::check;

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
    /// The field that holds how access times are kept; 0 is relatime.
    pub const ATIME_MASK: u64 = 0x70;
    /// Access times are never kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always kept.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are never kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Map ids by a user namespace.
    pub const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// What to change on a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttrChange {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
}

impl AttrChange {
    /// Whether nothing is to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

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
    set_attributes(
        mount,
        &MountAttr {
            propagation: kind,
            ..MountAttr::default()
        },
        recursive,
    )
}

/// Maps the ids of a detached mount by a user namespace.
pub fn map_ids(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = MountAttr {
        set: attr::IDMAP,
        userns: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    set_attributes(mount, &attr, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a valid empty string, and attr lives across the call with its own size.
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
