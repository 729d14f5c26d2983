//! The parent group of all containers, and the memory that they may use together.
//!
//! In a group that reaches its limit the kernel kills a process. A guest that is out of memory as a
//! whole may hang instead: the kernel kills nothing for an allocation on behalf of a file system
//! (GFP_NOFS) and tries for ever, and such allocations read evicted pages of programs back. So the
//! containers together get a limit that leaves the kernel and the agent enough.

use std::fs;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::sys::{Doing as _, OsError};

/// The guest's root group, in which the agent stays.
const ROOT: &str = "/sys/fs/cgroup";

/// The parent group.
pub const PARENT: &str = "/sys/fs/cgroup/containers";

/// What the kernel and the agent may need beyond what they used before the first container: network
/// buffers, the threads and tables of many processes.
const RESERVE_KIB: u64 = 6 << 10;

/// The kernel's page structures take one part in this many of plugged memory.
const PAGE_STRUCTURES: u64 = 64;

/// Makes the parent group, whose children can use every controller of the kernel.
pub fn prepare() -> Result<(), OsError> {
    enable_controllers(ROOT)?;
    match rustix::fs::mkdir(PARENT, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing(|| format!("make cgroup {PARENT}")),
    }
    enable_controllers(PARENT)
}

fn enable_controllers(group: &str) -> Result<(), OsError> {
    let path = format!("{group}/cgroup.controllers");
    let controllers = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let enable: Vec<_> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if enable.is_empty() {
        return Ok(());
    }
    let path = format!("{group}/cgroup.subtree_control");
    fs::write(&path, enable.join(" ")).doing(|| format!("write {path}"))
}

/// The guest's memory before its first container, in KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    total: u64,
    available: u64,
}

/// Sets the limit of all containers together. The first call comes before the first container;
/// later ones when memory may have been plugged or unplugged.
pub fn limit_memory() -> Result<(), OsError> {
    static AT_FIRST: OnceLock<Memory> = OnceLock::new();
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).doing(|| format!("read {path}"))?;
    let now = parse(&text).ok_or(Errno::INVAL);
    let now = now.doing(|| format!("find MemTotal and MemAvailable in {path}"))?;
    let limit = shared_kib(*AT_FIRST.get_or_init(|| now), now.total) << 10;
    let path = format!("{PARENT}/memory.max");
    fs::write(&path, limit.to_string()).doing(|| format!("write {limit} to {path}"))
}

/// The limit of a guest that started with `first` and has `total` KiB now.
fn shared_kib(first: Memory, total: u64) -> u64 {
    let plugged = total.saturating_sub(first.total);
    let kept = first.total.saturating_sub(first.available) + RESERVE_KIB;
    total.saturating_sub(kept + plugged / PAGE_STRUCTURES)
}

fn parse(meminfo: &str) -> Option<Memory> {
    let field = |name| {
        let mut lines = meminfo.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse().ok()
    };
    Some(Memory {
        total: field("MemTotal:")?,
        available: field("MemAvailable:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_the_guest_had_left_less_a_reserve_and_most_of_what_is_plugged() {
        let first =
            parse("MemTotal: 94740 kB\nMemFree: 68284 kB\nMemAvailable:  67612 kB\n").unwrap();
        assert_eq!(shared_kib(first, first.total), 67612 - RESERVE_KIB);
        let grown = first.total + (64 << 10);
        assert_eq!(shared_kib(first, grown), 67612 - RESERVE_KIB + (63 << 10));
        assert_eq!(shared_kib(first, 10_000), 0);
        assert!(parse("MemTotal: 1 kB\n").is_none());
    }
}
