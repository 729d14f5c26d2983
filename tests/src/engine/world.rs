//! Namespaces of an engine. Its network, mounts and processes belong to it alone, and end with it,
//! however the tests end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The script that makes one.
const SCRIPT: &str = include_str!("world.sh");

/// The longest time for a process or a mount to disappear.
const PATIENCE: Duration = Duration::from_secs(10);

/// The namespaces, and their files and cgroups on the host.
pub struct World {
    init: Mutex<(Child, Option<ChildStdin>)>,
    pid: String,
    dir: PathBuf,
    cgroup: String,
    mounts: BTreeSet<String>,
}

impl World {
    /// Makes a world with the host's root, or with that of the system in `root`.
    pub fn new(root: Option<&Path>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Statics are never dropped, so `end` removes it.
        let dir = tempfile::tempdir().unwrap().keep();
        let dist = crate::dist().canonicalize().unwrap();
        let script = dir.join("world.sh");
        fs::write(&script, SCRIPT).unwrap();
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--propagation=slave",
            "sh",
        ]);
        command.arg(script).arg(&dir).arg(dist).args(root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut init = command.spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(init.stdout.take().unwrap())
            .read_line(&mut pid)
            .unwrap();
        let pid = pid.trim().to_owned();
        assert!(!pid.is_empty(), "the engine's namespaces were not made");
        let stdin = init.stdin.take();
        let mut world = Self {
            init: Mutex::new((init, stdin)),
            pid,
            dir,
            cgroup: format!("rvm-engine-{}-{count}", std::process::id()),
            mounts: BTreeSet::new(),
        };
        world.mounts = world.mount_points();
        world
    }

    /// A directory with the same path inside and outside the world.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup below which the engine puts containers.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cgroup)
    }

    /// A program in the world, not yet started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target", &self.pid, "--mount", "--net", "--pid", "--root", "--wd",
        ]);
        command.args(["--", program]).stdin(Stdio::null());
        command.env("HOME", &self.dir).env_remove("XDG_RUNTIME_DIR");
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
    }

    /// A path in the world, as seen from outside.
    pub fn outside(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(&self.pid)
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// The processes in the world: pids in its pid namespace, and command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let entries = fs::read_dir(self.outside("proc")).unwrap();
        let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let with_name = pids
            .filter(|pid| *pid != 1)
            .map(|pid| (pid, self.command_line(pid)));
        with_name.collect()
    }

    /// The command line of a process in the world; empty if it has ended.
    pub fn command_line(&self, pid: i32) -> String {
        let path = self.outside(&format!("proc/{pid}/cmdline"));
        fs::read_to_string(path)
            .unwrap_or_default()
            .replace('\0', " ")
            .trim()
            .to_owned()
    }

    fn mount_points(&self) -> BTreeSet<String> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap();
        let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
        table.lines().filter_map(point).collect()
    }

    /// A description of what an engine that has ended and its containers left.
    pub fn leaks(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() || start.elapsed() > PATIENCE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (pid, line) in self.processes() {
            left.push(format!("process {pid} {line}"));
        }
        for point in self.mount_points().difference(&self.mounts) {
            // dockerd keeps its own namespace under a name and, with live-restore, its data, and
            // podman a directory for names.
            let kept = ["/netns/default", "/netns", "/data"];
            if !kept.iter().any(|end| point.ends_with(end)) {
                left.push(format!("mount {point}"));
            }
        }
        let below = cgroup_directories(&self.cgroup);
        left.extend(
            below
                .iter()
                .flat_map(|dir| children(dir))
                // Podman makes it for its conmon.
                .filter(|dir| !dir.ends_with("/conmon"))
                .map(|dir| format!("cgroup {dir}")),
        );
        left
    }

    /// Kills every process in the world, which ends its namespaces.
    pub fn end(&self) {
        let mut init = self.init.lock().unwrap();
        drop(init.1.take());
        init.0.wait().unwrap();
        for dir in cgroup_directories(&self.cgroup) {
            // If a test has failed, other things are left in it.
            let _ = fs::remove_dir(dir.join("conmon"));
            let _ = fs::remove_dir(dir);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The cgroup's directory in every hierarchy that has it.
fn cgroup_directories(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchies = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        fields[2]
            .starts_with("cgroup")
            .then(|| Path::new(fields[1]).join(name))
    });
    hierarchies.filter(|dir| dir.exists()).collect()
}

fn children(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path().display().to_string())
        .collect()
}
