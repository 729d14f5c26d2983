//! A file that the host has open, for a process in the guest.
//!
//! The agent opens it anew, through a mount of the file in the shared directory: with the host's
//! flags, so appends of both sides are all kept, and from the host's offset on. From then on each
//! side has an offset of its own.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rvm_protocol::SHARED_DIR;
use rvm_protocol::agent::ExtraDescriptor;
use rvm_protocol::agent::extra_descriptor::Kind;

use crate::dir::SandboxDir;
use crate::share::{self, SharedMount};

/// The directory of such mounts in the shared directory. A container's id has no `@`.
const PASSED: &str = "@passed";

/// A mount of a file for one descriptor, until it is dropped. What a killed process leaves goes
/// with the sandbox.
pub(crate) struct PassedFile {
    shared: PathBuf,
    place: PathBuf,
}

impl PassedFile {
    /// Mounts the file, read-only if the descriptor is. The agent needs the second value.
    pub(crate) fn share(sandbox: &SandboxDir, fd: &OwnedFd) -> io::Result<(Self, ExtraDescriptor)> {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        let mut name = [0; 8];
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty())?;
        let place = Path::new(PASSED).join(format!("{:016x}", u64::from_ne_bytes(name)));
        let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut wanted = SharedMount::new(source.into(), place.clone());
        wanted.read_only = (flags & OFlags::ACCMODE == OFlags::RDONLY).then_some(true);
        let passed = Self {
            shared: sandbox.shared(),
            place,
        };
        share::share(&passed.shared, &wanted).map_err(explain)?;
        let descriptor = ExtraDescriptor {
            kind: Kind::FILE.into(),
            path: format!("{SHARED_DIR}/{}", passed.place.display()),
            flags: flags.bits(),
            offset: rustix::fs::tell(fd)?,
            ..Default::default()
        };
        Ok((passed, descriptor))
    }
}

impl Drop for PassedFile {
    fn drop(&mut self) {
        if let Err(error) = share::unshare_file(&self.shared, &self.place) {
            tracing::warn!("a file that was passed on: {error}");
        }
    }
}

/// The kernel says EINVAL of a file that is in no mount of this namespace.
fn explain(error: share::StorageError) -> io::Error {
    let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(libc::EINVAL) => io::Error::other(
            "the file is in no file system that is mounted here; only one that is can be carried \
             into the virtual machine",
        ),
        _ => io::Error::other(error),
    }
}
