//! Where things lie in the shared directory, and what is to be mounted there.

use std::path::PathBuf;

use crate::host::idmap::IdMap;

/// The name of the configuration in a bundle.
pub const CONFIG_FILE: &str = "config.json";

/// The name of the shared directory.
pub const SHARED: &str = "shared";

/// A container's root, below its own part of the shared directory.
pub const ROOT: &str = "rootfs";

/// Its volumes, likewise.
pub const VOLUMES: &str = "mounts";

/// The name of the directory in which a jail's root is put together.
pub const STAGE: &str = "stage";

/// A directory or file of the host that the guest must be able to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it goes, below the shared directory.
    pub place: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The guest may not change it, whatever it does.
    pub read_only: bool,
    /// What the host mounts below the source later appears too.
    pub follows_host: bool,
    /// How owners are mapped.
    pub idmap: Option<IdMap>,
    /// Containers of a pod have one place for the same files, so that they are the same files in the
    /// guest, too. Here, below the shared directory, is noted that this one has it.
    pub held: Option<PathBuf>,
}
