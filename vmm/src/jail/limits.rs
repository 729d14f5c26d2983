//! What a jailed process may have: many descriptors, no core dump, no user namespace.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{JailError, step};

/// As many descriptors as the host allows: the guest's open files are ours.
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

/// The limit on user namespaces below the one that the process will be in. In a namespace of its own a
/// process has every capability again, and with them parts of the kernel that few have looked at.
pub struct UserNamespaces(OwnedFd);

impl UserNamespaces {
    /// Holds on to the host's /proc/sys, which the new root does not have.
    pub fn find() -> Result<Self, JailError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, "/proc/sys", flags, Mode::empty())
            .map(Self)
            .map_err(step("open /proc/sys"))
    }

    /// Forbids them. The file is another one in each user namespace, so the caller is in the one that
    /// is meant, with its capabilities.
    pub fn forbid(self) -> Result<(), JailError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.0, "user/max_user_namespaces", flags, Mode::empty())
            .and_then(|file| rustix::io::write(&file, b"0"))
            .map(|_| ())
            .map_err(step("forbid user namespaces"))
    }
}
