//! Bundles with busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::command;

/// The capabilities that Docker gives by default.
pub const DOCKER_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A bundle in a directory of its own.
pub struct Bundle {
    dir: tempfile::TempDir,
    /// Written to disk when the bundle is used.
    pub config: Value,
}

/// Programs of busybox that the tests call.
const APPLETS: &[&str] = &[
    "awk", "blockdev", "cat", "cut", "date", "dd", "df", "echo", "env", "false", "grep", "head",
    "hostname", "id", "kill", "ls", "md5sum", "mkdir", "mknod", "mount", "nproc", "ps", "pwd",
    "readlink", "rm", "sed", "seq", "sh", "sleep", "stat", "stty", "sync", "tail", "touch", "tr",
    "true", "tty", "uname", "wc", "yes",
];

impl Bundle {
    /// A bundle with this command.
    pub fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
            .expect("the tests need busybox-static; scripts/setup test installs it");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        Self {
            dir,
            config: config(args),
        }
    }

    /// A bundle with a shell command.
    pub fn shell(command: &str) -> Self {
        Self::new(&["sh", "-c", command])
    }

    /// Changes the configuration.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Gives the process these capabilities and no others.
    pub fn capabilities(self, capabilities: &[&str]) -> Self {
        self.with(|config| {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(capabilities);
            }
        })
    }

    /// Adds a mount.
    pub fn mount(self, mount: Value) -> Self {
        self.with(|config| config["mounts"].as_array_mut().unwrap().push(mount))
    }

    /// Writes the configuration; returns the directory. A container without a cgroup path gets a
    /// cgroup in the world of the test.
    pub fn write(&self) -> &Path {
        let mut config = self.config.clone();
        if let (Some(world), Some(linux)) = (command::world(), config["linux"].as_object_mut()) {
            let name = self.dir.path().file_name().unwrap().to_str().unwrap();
            let cgroup = format!("{world}/{name}");
            linux.entry("cgroupsPath").or_insert(cgroup.into());
        }
        let text = serde_json::to_string_pretty(&config).unwrap();
        fs::write(self.dir.path().join("config.json"), text).unwrap();
        self.path()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the root file system.
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }
}

/// A bind mount of config.json.
pub fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({
        "destination": destination, "type": "bind", "source": source, "options": options,
    })
}

/// The configuration that `runc spec` writes, without a terminal.
fn config(args: &[&str]) -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": caps, "effective": caps, "permitted": caps,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}
