//! Containers with busybox in them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Machine;

const APPLETS: [&str; 26] = [
    "sh", "cat", "echo", "ls", "id", "ps", "mount", "sleep", "head", "dd", "wc", "grep", "stty",
    "tty", "touch", "hostname", "env", "pwd", "kill", "mkdir", "true", "false", "stat", "readlink",
    "date", "tail",
];

/// A root file system and its config.json.
pub struct Bundle {
    pub id: String,
    pub rootfs: PathBuf,
    pub spec: Value,
}

impl Bundle {
    /// One that runs a program with its arguments.
    pub fn new(machine: &Machine, id: &str, args: &[&str]) -> Self {
        let rootfs = machine.shared_directory().join(id).join("rootfs");
        make_rootfs(&rootfs);
        let mut spec: Value = serde_json::from_str(CONFIG).unwrap();
        spec["process"]["args"] = json!(args);
        spec["root"]["path"] = json!(format!("{}/{id}/rootfs", Machine::SHARED));
        Self {
            id: id.to_owned(),
            rootfs,
            spec,
        }
    }

    /// One that runs a shell command.
    pub fn shell(machine: &Machine, id: &str, command: &str) -> Self {
        Self::new(machine, id, &["/bin/sh", "-c", command])
    }

    /// Changes its config.json.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Adds a mount.
    pub fn with_mount(mut self, mount: Value) -> Self {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }
}

fn make_rootfs(rootfs: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "home"] {
        std::fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n";
    std::fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
}

/// What `runc spec` writes, less the terminal, with the capabilities that dockerd gives.
const CONFIG: &str = r#"{
  "ociVersion": "1.2.0",
  "process": {
    "user": { "uid": 0, "gid": 0 },
    "args": [],
    "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
    "cwd": "/",
    "capabilities": {
      "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"],
      "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"],
      "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]
    },
    "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2048, "soft": 512 }],
    "noNewPrivileges": true
  },
  "root": { "path": "", "readonly": false },
  "hostname": "inside",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
      "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
    { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
    { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
      "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
    { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
      "options": ["nosuid", "noexec", "nodev"] },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs",
      "options": ["nosuid", "noexec", "nodev", "ro"] },
    { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
      "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
  ],
  "linux": {
    "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
    "namespaces": [
      { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
      { "type": "mount" }, { "type": "cgroup" }
    ],
    "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/scsi"],
    "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/irq", "/proc/sysrq-trigger"]
  }
}"#;
