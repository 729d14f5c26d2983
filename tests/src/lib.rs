//! Shared by the end-to-end tests: bundles, the rvm command, and the search for what a test left
//! behind.
//!
//! The tests run the binaries of an installation: `$RVM_DIST`, or `dist`, which `make build` fills.
//! They run as root, on the engine that `$RVM_TEST_ENGINE` names, `qemu` by default.

pub mod bundle;
pub mod cgroups;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod device_mapper;
pub mod disk;
pub mod engine;
pub mod image;
pub mod inject;
pub mod leaks;
pub mod leftovers;
pub mod memory;
pub mod network;
pub mod pod;
pub mod shim;
pub mod terminal;
pub mod upgrade;

use std::path::{Path, PathBuf};

pub use bundle::{Bundle, bind};
pub use command::{Finished, Rvm};
pub use containerd::Containerd;

/// The installation under test.
pub fn dist() -> PathBuf {
    match std::env::var_os("RVM_DIST") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist"),
    }
}

/// The engine under test.
pub fn engine() -> String {
    std::env::var("RVM_TEST_ENGINE").unwrap_or_else(|_| "qemu".to_owned())
}

/// What `$RVM_TEST_TEMPLATES` says of templates in place of the configuration's default.
pub fn templates() -> Option<String> {
    std::env::var("RVM_TEST_TEMPLATES").ok()
}

/// Whether `$RVM_TEST_LONG` asks for all of what is long, as `scripts/test files` does. Without it
/// a slice of it runs.
pub fn long() -> bool {
    std::env::var_os("RVM_TEST_LONG").is_some()
}

/// Whether a directory is on a tmpfs.
pub fn is_in_memory(dir: &Path) -> bool {
    rustix::fs::statfs(dir).unwrap().f_type == libc::TMPFS_MAGIC
}
