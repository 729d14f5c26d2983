//! The limits of a jailed process: many descriptors, no core dump, no user namespaces.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{JailError, step};

/// Raises RLIMIT_NOFILE to its maximum, because each open file of the guest is a descriptor of this
/// process, and forbids core dumps.
pub fn set_resource_limits() -> Result<(), JailError> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(step("raise RLIMIT_NOFILE"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(step("set RLIMIT_CORE"))
}

/// The limit on user namespaces within the one that the process will be in. In a namespace of its
/// own a process would have every capability again, which opens parts of the kernel that are little
/// tested.
pub struct UserNamespaces(OwnedFd);

impl UserNamespaces {
    /// Opens the host's /proc/sys, which the jail lacks.
    pub fn open() -> Result<Self, JailError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, "/proc/sys", flags, Mode::empty())
            .map(Self)
            .map_err(step("open /proc/sys"))
    }

    /// Forbids user namespaces within the caller's. The file shows the limit of the caller's own
    /// user namespace, so the caller must be in it already and still have its capabilities.
    pub fn forbid(self) -> Result<(), JailError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.0, "user/max_user_namespaces", flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, b"0"))
            .map(|_| ())
            .map_err(step("forbid user namespaces"))
    }
}
