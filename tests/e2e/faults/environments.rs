//! Hosts that lack something: descriptors, processes, memory, room for the state.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rvm_tests::{Rvm, leftovers};

use super::case::{Fault, World};
use super::matrix::{self, Case};
use super::scenarios::SCENARIOS;

/// A file system of its own for a state root.
pub struct StateRoot(tempfile::TempDir);

impl StateRoot {
    /// The room is more than the state of some containers takes.
    pub fn new(rvm: &Rvm) -> Self {
        let dir = tempfile::Builder::new()
            .prefix(&leftovers::prefix())
            .tempdir();
        let dir = dir.unwrap();
        let options = Some(c"size=1m,nr_inodes=200");
        mount("state", dir.path(), "tmpfs", MountFlags::empty(), options).unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        symlink(state, rvm.root()).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no room for a byte or a file.
    pub fn fill(&self) {
        let dir = self.path().join("filler");
        fs::create_dir(&dir).unwrap();
        let block = [0; 4096];
        let mut file = fs::File::create(dir.join("0")).unwrap();
        while file.write_all(&block).is_ok() {}
        for number in 1.. {
            if fs::File::create(dir.join(number.to_string())).is_err() {
                return;
            }
        }
    }

    /// Makes room again.
    pub fn empty(&self) {
        let _ = fs::remove_dir_all(self.path().join("filler"));
    }

    pub fn set_read_only(&self, read_only: bool) {
        let flags = match read_only {
            true => MountFlags::RDONLY,
            false => MountFlags::empty(),
        };
        // A monitor that writes keeps it busy for a moment.
        rvm_tests::command::eventually("the file system is remounted", || {
            mount_remount(self.path(), flags, c"").is_ok()
        });
    }
}

impl Drop for StateRoot {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// What a cgroup limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Processes,
    Memory,
}

/// Cgroups in which a verb has little: with cgroup v2 that of all commands, and with v1, whose
/// hierarchies limit one thing each, groups beside those of the world.
pub struct Limits {
    commands: PathBuf,
    name: String,
}

impl Limits {
    pub fn new(rvm: &Rvm) -> Self {
        Self {
            commands: rvm.commands_group(),
            name: format!("{}-limits", rvm.cgroups_name()),
        }
    }

    /// The group, and the name of the file that limits it.
    fn group(&self, kind: Limit) -> (PathBuf, &'static str) {
        let (controller, one, two) = match kind {
            Limit::Processes => ("pids", "pids.max", "pids.max"),
            Limit::Memory => ("memory", "memory.limit_in_bytes", "memory.max"),
        };
        let hierarchy = Path::new("/sys/fs/cgroup").join(controller);
        match hierarchy.join("tasks").exists() {
            true => (hierarchy.join(&self.name), one),
            false => (self.commands.clone(), two),
        }
    }

    /// Has a command run with a limit.
    pub fn enter(&self, command: &mut Command, kind: Limit, limit: u64) {
        let (group, file) = self.group(kind);
        let _ = fs::create_dir(&group);
        fs::write(group.join(file), limit.to_string()).unwrap();
        let procs = group.join("cgroup.procs");
        let procs = fs::File::options().write(true).open(procs).unwrap();
        #[expect(unsafe_code, reason = "pre_exec")]
        // SAFETY: the closure makes a system call and allocates nothing.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"))
        };
    }

    pub fn lift(&self, kind: Limit) {
        let (group, file) = self.group(kind);
        let none = if file == "memory.limit_in_bytes" {
            "-1"
        } else {
            "max"
        };
        fs::write(group.join(file), none).unwrap();
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for kind in [Limit::Processes, Limit::Memory] {
            let (group, _) = self.group(kind);
            if group != self.commands {
                // It is there if there was such a case.
                let _ = fs::remove_dir(group);
            }
        }
    }
}

fn with_each(faults: &[Fault]) -> Vec<Case> {
    let cases = SCENARIOS.iter().flat_map(|scenario| {
        let with = move |fault: &Fault| (scenario, fault.clone());
        faults.iter().map(with)
    });
    cases.collect()
}

#[test]
fn a_host_without_descriptors_is_told() {
    // The standard streams take three, and none takes more than some forty.
    let counts: Vec<_> = (3..48).map(Fault::Descriptors).collect();
    matrix::run("descriptors", World::played, with_each(&counts));
}

#[test]
fn a_host_without_room_for_processes_is_told() {
    let counts: Vec<_> = (1..32)
        .map(|count| Fault::Group(Limit::Processes, count))
        .collect();
    matrix::run("processes", World::played, with_each(&counts));
}

#[test]
fn a_host_without_memory_kills_and_nothing_is_left() {
    let sizes = (1..24).map(|size| Fault::Group(Limit::Memory, size << 19));
    matrix::run(
        "memory",
        World::played,
        with_each(&sizes.collect::<Vec<_>>()),
    );
}

#[test]
fn a_state_root_that_is_full_or_read_only_is_told() {
    matrix::run(
        "state root",
        World::played,
        with_each(&[Fault::FullRoot, Fault::ReadOnlyRoot]),
    );
}
