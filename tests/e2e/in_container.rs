//! What builds and installs in a container: a Docker daemon with containers of its own, and package
//! managers. The programs are the host's, whose /usr the container has as a volume.

use std::fs;
use std::path::Path;

use rvm_tests::bundle::DOCKER_CAPABILITIES;
use rvm_tests::{Bundle, Rvm, bind, disk};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// What a Docker daemon and its runtime need besides.
const OF_A_DAEMON: &[&str] = &[
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
];

/// A bundle that runs a script with the host's programs.
fn system(script: &str, arguments: &[&str], capabilities: &[&str]) -> Bundle {
    let bundle = Bundle::new(&[&["sh", "/script"], arguments].concat());
    let bundle = bundle.capabilities(capabilities).with(|config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/bin", "HOME=/root"]);
        config["linux"]["resources"]["memory"] = json!({ "limit": 1024 * MIB });
    });
    for name in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), bundle.rootfs(name)).unwrap();
    }
    for name in ["root", "run", "var/lib"] {
        fs::create_dir_all(bundle.rootfs(name)).unwrap();
    }
    fs::write(bundle.rootfs("script"), script).unwrap();
    let users = "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n_apt:x:42:65534::/:/bin/sh\n";
    fs::write(bundle.rootfs("etc/passwd"), users).unwrap();
    fs::write(bundle.rootfs("etc/group"), "root:x:0:\ndaemon:x:1:\n").unwrap();
    let shared = |dir| bind(Path::new(dir), dir, &["rbind", "ro"]);
    (bundle.mount(shared("/usr"))).mount(shared("/etc/alternatives"))
}

/// A bundle in which a Docker daemon can run. `ending` is the script's argument.
fn daemon(ending: &str, data: Option<Value>) -> Bundle {
    let script = include_str!("in_container/docker.sh");
    let capabilities = [DOCKER_CAPABILITIES, OF_A_DAEMON].concat();
    let bundle = system(script, &[ending], &capabilities).with(|config| {
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
        for list in ["maskedPaths", "readonlyPaths"] {
            config["linux"][list] = json!([]);
        }
        for mount in config["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/sys" {
                mount["options"] = json!(["nosuid", "noexec", "nodev"]);
            }
        }
    });
    let cgroup = json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev"],
    });
    let bundle = bundle.mount(cgroup);
    match data {
        Some(mount) => bundle.mount(mount),
        None => bundle,
    }
}

/// Whether the system has a Docker daemon.
fn has_docker() -> bool {
    let found = Path::new("/usr/sbin/dockerd").exists();
    if !found {
        println!("skipped: there is no dockerd; scripts/setup test installs it");
    }
    found
}

/// What a container sees of an image that was built with overlay2, and its limit.
const SEEN: &str = "/content/second\nremoved\n67108864\n";

#[test]
fn a_docker_daemon_works_on_a_shared_root_and_stops() {
    if !has_docker() {
        return;
    }
    let rvm = Rvm::new();
    let finished = rvm.run(&daemon("stop", None), "box");
    assert_eq!(finished.code, 0, "{finished:?}");
    let networks = "page\nbeyond\npublished page\n";
    let stopped = "stopped with 0 mounts and 0 groups\n";
    let expected = format!("{SEEN}{networks}{stopped}");
    assert_eq!(finished.stdout, expected, "{}", finished.stderr);
}

#[test]
fn a_disk_is_sound_when_a_container_ends_under_the_docker_daemon_that_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = disk::image(dir.path(), "ext4", 1024 * MIB, None).filter(|_| has_docker());
    let Some(image) = image else {
        return;
    };
    let rvm = Rvm::new();
    let mount = json!({ "destination": "/data", "type": "ext4", "source": image });
    let finished = rvm.run(&daemon("leave", Some(mount)), "box");
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(finished.stdout, SEEN, "{}", finished.stderr);
    disk::assert_ext4_is_clean(&image);
}

#[test]
fn dpkg_and_apt_install_upgrade_and_remove_with_the_capabilities_that_docker_gives() {
    let script = include_str!("in_container/packages.sh");
    let finished = Rvm::new().run(&system(script, &[], DOCKER_CAPABILITIES), "box");
    assert_eq!(finished.code, 0, "{finished:?}");
    let files = |name: &str| {
        ["fifo", "link", "linked", name, "program"]
            .map(|name| format!("/opt/small/{name}"))
            .join(" ")
    };
    let shown = |by: &str, version: &str, name: &str| {
        let files = files(name);
        format!("{by}: small\t{version}, {files}, {version}, daemon 4755 2, setting = {version}\n")
    };
    let expected = shown("dpkg", "1", "old") + &shown("apt", "2", "new") + "purged\n";
    assert_eq!(finished.stdout, expected, "{}", finished.stderr);
}
