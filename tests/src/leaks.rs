//! What a test may leave behind: processes, mounts, cgroups, links, sockets, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cgroups::Cgroups;
use crate::command::mentions;
use crate::network::Network;

/// A description of everything that is left.
pub fn find(dir: &Path, root: &Path, cgroups: &Cgroups, network: &Network) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    for pid in cgroups.members() {
        left.insert(format!("process {pid} {}", command_line(pid)));
    }
    for path in cgroups.foreign() {
        left.insert(format!("cgroup {}", path.display()));
    }
    left.extend(network.foreign());
    let mounts = mentions("/proc/self/mountinfo", dir);
    if mounts > 0 {
        left.insert(format!("mounts: {mounts}"));
    }
    if let Ok(entries) = fs::read_dir(root) {
        for entry in entries {
            left.insert(format!("file {}", entry.unwrap().path().display()));
        }
    }
    left
}

/// The arguments of a process; empty if it has ended.
pub fn command_line(pid: i32) -> String {
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.replace('\0', " ").trim_end().to_owned()
}

/// Removes the mounts of a failed test.
pub fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(point, flags);
    }
}
