//! The root that the host's tools see of a container whose root is on disks.

use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::{ROOT, StorageError, at, make_dir};

/// Mounts an empty directory in place of a container's root, which only the guest has.
pub fn make_empty_root(shared: &Path, id: &str) -> Result<(), StorageError> {
    let root = shared.join(id).join(ROOT);
    make_dir(&root)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounted = mount("rvm", &root, "tmpfs", flags, Some(c"mode=755,size=4k"));
    at("mount tmpfs on", &root, mounted)
}
