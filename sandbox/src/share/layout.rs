//! The paths of the shared directory, and its mounts.

use std::path::PathBuf;

use crate::host::idmap::IdMap;

/// The configuration's file name in a bundle.
pub const CONFIG_FILE: &str = "config.json";

/// The shared directory, below the sandbox's.
pub const SHARED: &str = "shared";

/// A container's root, below its directory in the shared directory.
pub const ROOT: &str = "rootfs";

/// A container's volumes, likewise.
pub const VOLUMES: &str = "mounts";

/// A container's image files, likewise.
pub const DISKS: &str = "disks";

/// The directory in which rvm-vmm builds the jail's root.
pub const STAGE: &str = "stage";

/// A mount in the shared directory: of a file or directory of the host, or an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMount {
    /// The file or directory. Of an overlay, the name in the configuration.
    pub source: PathBuf,
    /// The options of an overlay's file system.
    pub overlay: Option<String>,
    /// The mount point, relative to the shared directory.
    pub place: PathBuf,
    /// Includes the mounts below the source.
    pub recursive: bool,
    /// Whether the mount itself is made read-only, or writable; None leaves it like its source.
    pub read_only: Option<bool>,
    /// The same for the mount and all below it, and applied after it.
    pub all_read_only: Option<bool>,
    /// Later mounts of the host below the source appear too.
    pub follows_host: bool,
    pub idmap: Option<IdMap>,
    /// Containers of a pod share one mount of the same files, so that the guest sees the same
    /// inodes. The existence of this file, relative to the shared directory, says that a container
    /// uses it.
    pub reference: Option<PathBuf>,
}

impl SharedMount {
    /// A mount that shows the source alone and as it is.
    pub fn new(source: PathBuf, place: PathBuf) -> Self {
        Self {
            source,
            overlay: None,
            place,
            recursive: false,
            read_only: None,
            all_read_only: None,
            follows_host: false,
            idmap: None,
            reference: None,
        }
    }
}
