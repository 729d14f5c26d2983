//! The cgroups of a test's world.
//!
//! In the cgroup v2 hierarchy they hold everything that a test starts, even after its parents end.
//! Every hierarchy, v1 or v2, has a directory for the containers of the world, so that everything
//! left there belongs to this test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::command::signal;
use crate::leftovers;

pub struct Cgroups {
    /// Its path in each hierarchy.
    name: String,
    /// The mount point of cgroup v2, with or without controllers.
    unified: PathBuf,
    /// All mount points.
    hierarchies: Vec<PathBuf>,
}

/// The cgroup of the test's commands, below the world's directory. Containers get cgroups beside
/// it: in cgroup v2, a cgroup with processes cannot give controllers to its children.
const COMMANDS: &str = "commands";

impl Cgroups {
    /// The cgroups of this name, which need not exist. Dropping the value removes them.
    fn named(name: String) -> Self {
        Self {
            name,
            unified: mounted(&["cgroup2"])
                .pop()
                .expect("the tests need cgroup version 2 to be mounted somewhere"),
            hierarchies: mounted(&["cgroup", "cgroup2"]),
        }
    }

    /// The names of all existing ones.
    pub fn existing(is_wanted: impl Fn(&str) -> bool) -> Vec<Self> {
        let unified = mounted(&["cgroup2"]).pop().into_iter();
        let entries = unified.flat_map(|root| fs::read_dir(root).unwrap().flatten());
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_wanted(name))
            .map(Self::named)
            .collect()
    }

    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroups = Self::named(format!("{}{count}", leftovers::prefix()));
        for world in cgroups.worlds() {
            fs::create_dir(&world).unwrap();
        }
        fs::create_dir(cgroups.unified_world().join(COMMANDS)).unwrap();
        cgroups
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory for the world's containers, as config.json names it.
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// The file through which the test's commands enter the cgroup.
    pub fn procs(&self) -> PathBuf {
        self.unified_world().join(COMMANDS).join("cgroup.procs")
    }

    pub fn members(&self) -> Vec<i32> {
        members(&self.unified_world())
    }

    /// Kills all processes, at once where the kernel can (Linux 5.14).
    pub fn kill(&self) {
        let _ = fs::write(self.unified_world().join("cgroup.kill"), "1");
        let mut members = self.members();
        while !members.is_empty() {
            members.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(20));
            members = self.members();
        }
    }

    /// The cgroups in the world that this value did not make.
    pub fn foreign(&self) -> Vec<PathBuf> {
        let commands = self.unified_world().join(COMMANDS);
        self.worlds()
            .flat_map(|world| below(&world).into_iter().skip(1))
            .filter(|dir| *dir != commands)
            .collect()
    }

    fn worlds(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|root| root.join(&self.name))
    }

    /// The directory that everything is in.
    pub fn unified_world(&self) -> PathBuf {
        self.unified.join(&self.name)
    }
}

impl Default for Cgroups {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for world in self.worlds() {
            for dir in below(&world).into_iter().rev() {
                // It is still in use if the test has failed.
                let _ = fs::remove_dir(&dir);
            }
        }
    }
}

/// The processes in a cgroup and those below it.
pub fn members(dir: &Path) -> Vec<i32> {
    let mut members = Vec::new();
    for dir in below(dir) {
        // It may just have been removed.
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        members.extend(text.lines().map(|line| line.parse::<i32>().unwrap()));
    }
    members
}

/// The mount points of file systems of these types.
fn mounted(types: &[&str]) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect());
    fields
        .filter(|fields: &Vec<&str>| types.contains(&fields[2]))
        .map(|fields| fields[1].into())
        .collect()
}

/// A directory and those below it, parents first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(below(&entry.path()));
    }
    found
}
