//! What a test may leave behind: processes, mounts, sockets, files.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::command::{mentions, signal};

/// A cgroup that everything a test starts is in, whatever becomes of its parents.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// A new one, where the host has version 2 mounted, with or without controllers.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = mount_point().join(format!("rvm-test-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The file that processes are moved with.
    pub fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// The processes in it.
    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.procs()).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Ends them.
    pub fn kill(&self) {
        let mut members = self.members();
        while !members.is_empty() {
            members.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
            std::thread::sleep(std::time::Duration::from_millis(20));
            members = self.members();
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Still in use if the test has failed.
        let _ = fs::remove_dir(&self.0);
    }
}

fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields[2] == "cgroup2").then(|| fields[1].into())
    });
    point.expect("the tests need cgroup version 2 to be mounted somewhere")
}

/// Everything that is left, in words.
pub fn find(dir: &Path, root: &Path, cgroup: &Cgroup) -> HashSet<String> {
    let mut left = HashSet::new();
    for pid in cgroup.members() {
        let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        left.insert(format!("process {pid} {}", name.replace('\0', " ")));
    }
    for (what, table) in [
        ("mount", "/proc/self/mountinfo"),
        ("socket", "/proc/net/unix"),
    ] {
        let count = mentions(table, dir);
        if count > 0 {
            left.insert(format!("{what}s: {count}"));
        }
    }
    if let Ok(entries) = fs::read_dir(root) {
        for entry in entries {
            left.insert(format!("file {}", entry.unwrap().path().display()));
        }
    }
    left
}

/// Takes the mounts of a failed test away.
pub fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(point, flags);
    }
}
