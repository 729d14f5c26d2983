//! The limits of a jailed process: many descriptors, some threads, no core dump, no user
//! namespaces.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{JailError, step};

/// The most descriptors of a jailed process: what systemd allows a service by default. Each open
/// file takes about a KiB of the kernel's memory, and on hosts without a limit a guest could open a
/// thousand million.
const MAX_FDS: u64 = 524_288;

/// The most threads of a jailed process: 254 for vCPUs, QEMU's workers, and those of devices.
const MAX_THREADS: u64 = 512;

/// Raises RLIMIT_NOFILE, because each open file of the guest is a descriptor of this process,
/// limits the threads, also where the container's control group has no limit, and forbids core
/// dumps.
///
/// The kernel counts threads by user, and not those of root: this holds for a process with a user
/// of its own.
pub fn set_resource_limits() -> Result<(), JailError> {
    let hard = getrlimit(Resource::Nofile).maximum;
    set(
        Resource::Nofile,
        hard.map_or(MAX_FDS, |hard| hard.min(MAX_FDS)),
    )
    .map_err(step("raise RLIMIT_NOFILE"))?;
    set(Resource::Nproc, MAX_THREADS).map_err(step("set RLIMIT_NPROC"))?;
    set(Resource::Core, 0).map_err(step("set RLIMIT_CORE"))
}

fn set(resource: Resource, limit: u64) -> rustix::io::Result<()> {
    let limit = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    setrlimit(resource, limit)
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
