//! A container's limits as values for the interface files of either version. Pure.

use oci_spec::runtime::LinuxResources;

use super::hierarchy::Version;
use super::limits::{self, LimitError, Overhead, Setting};
use super::{v1, v2};

/// Every limit except the CPUs and memory nodes of [`limits::placement`].
pub fn settings(
    version: Version,
    resources: &LinuxResources,
    engine: Overhead,
) -> Result<Vec<Setting>, LimitError> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        let host = limits::memory(memory, engine);
        settings.extend(match version {
            Version::One => v1::memory(&host, memory.swappiness()),
            Version::Two => v2::memory(&host, memory.swappiness())?,
        });
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(match version {
            Version::One => v1::cpu(cpu),
            Version::Two => v2::cpu(cpu),
        });
    }
    if let Some(limit) = limits::pids(resources) {
        let limit = limits::or_max(limit);
        settings.push(Setting::new("pids.limit", "pids", "pids.max", limit));
    }
    if let Some(io) = resources.block_io() {
        settings.extend(match version {
            Version::One => v1::block_io(io),
            Version::Two => v2::block_io(io),
        });
    }
    for (file, value) in resources.unified().iter().flatten() {
        if is_host_file(file) {
            settings.extend(match version {
                Version::One => return Err(v1::no_unified(file)),
                Version::Two => v2::unified(file, value),
            });
        }
    }
    Ok(settings)
}

/// Whether a file of `linux.resources.unified` controls what only the host has: its disks, its CPUs
/// and its memory nodes. The guest applies all others.
pub fn is_host_file(file: &str) -> bool {
    file.starts_with("io.") || file.starts_with("cpuset.")
}
