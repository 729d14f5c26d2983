//! Volumes of containers: the host's own directories, and copies that the host updates.

mod copies;
mod host_dirs;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;

pub use copies::Copies;
pub use host_dirs::{HostDir, HostDirs};
