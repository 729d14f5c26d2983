//! Volumes of containers: the host's own directories, and copies that the host updates.

mod copies;
mod host_dirs;

pub use copies::Copies;
pub use host_dirs::{HostDir, HostDirs};
