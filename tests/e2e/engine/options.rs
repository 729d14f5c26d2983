//! Options of `run`, many of them on one container.

use std::sync::OnceLock;

use crate::engine;
use rvm_tests::command::Finished;
use rvm_tests::disk::LoopDevice;
use rvm_tests::engine::{Runtime, runtime};

/// Prints what the options below change, each line with a name.
const SCRIPT: &str = r#"
say() { name=$1; shift; echo "$name=$("$@" 2>&1 | tr '\n' ' ')"; }
say env sh -c 'echo $GREETING'
say id id
say pwd pwd
say hostname hostname
say resolv grep -v '^#' /etc/resolv.conf
say hosts cat /etc/hosts
say open sh -c 'ulimit -Sn; ulimit -Hn'
say sysctl cat /proc/sys/net/ipv4/ip_unprivileged_port_start
say caps grep Cap /proc/self/status
say nnp grep NoNewPrivs /proc/self/status
say seccomp grep Seccomp: /proc/self/status
say scratch sh -c 'grep " /scratch " /proc/mounts'
say scratchwrite touch /scratch/file
say rootwrite touch /file
say shm sh -c 'grep " /dev/shm " /proc/mounts'
say oom cat /proc/self/oom_score_adj
say init cat /proc/1/cmdline
say device sh -c 'ls -l /dev/zero2'
say masked ls /proc/acpi /sys/firmware
say procsys sh -c 'echo 1 > /proc/sys/kernel/panic'
"#;

/// What one container with all of the options printed under this name.
#[allow(clippy::too_many_lines, reason = "a list of options")]
fn said(name: &str) -> &'static str {
    static FINISHED: OnceLock<Finished> = OnceLock::new();
    let finished = FINISHED.get_or_init(|| {
        let options = [
            &[
                "--env",
                "GREETING=hello there",
                "--user",
                "1000:1000",
                "--group-add",
                "2000",
            ][..],
            &["--workdir", "/var/www", "--hostname", "dressed"],
            &[
                "--dns",
                "192.0.2.7",
                "--dns-search",
                "example.org",
                "--dns-option",
                "ndots:2",
            ],
            &[
                "--add-host",
                "friend:192.0.2.8",
                "--ulimit",
                "nofile=512:600",
                "--ulimit",
                "nproc=900:900",
            ],
            &["--sysctl", "net.ipv4.ip_unprivileged_port_start=80"],
            &[
                "--cap-drop",
                "ALL",
                "--cap-add",
                "NET_ADMIN",
                "--cap-add",
                "SYS_TIME",
            ],
            &[
                "--security-opt",
                "no-new-privileges",
                "--read-only",
                "--oom-score-adj",
                "300",
            ],
            &[
                "--tmpfs",
                "/scratch:rw,noexec,size=1m,mode=1777",
                "--shm-size",
                "3m",
                "--init",
            ],
            &["--device", "/dev/zero:/dev/zero2"],
        ];
        engine().run(&options.concat(), &["sh", "-c", SCRIPT])
    });
    let mut pairs = finished
        .stdout
        .lines()
        .filter_map(|line| line.split_once('='));
    let said = pairs.find(|(of, _)| *of == name);
    said.unwrap_or_else(|| panic!("no {name} in {finished:#?}"))
        .1
        .trim()
}

#[test]
fn a_block_device_of_the_host_is_the_containers() {
    let Some(device) = LoopDevice::new("on the host\n", 1 << 20, 512) else {
        return;
    };
    let option = format!("{}:/dev/xvda:r", device.path().display());
    let script = "blockdev --getsize64 /dev/xvda; head -n 1 /dev/xvda; echo x > /dev/xvda";
    let finished = engine().run(&["--device", &option], &["sh", "-c", script]);
    if runtime() == Runtime::Rvm && rvm_tests::engine() == "qemu" {
        let words = "the block device /dev/xvda of linux.devices";
        assert!(finished.stderr.contains(words), "{finished:?}");
        return;
    }
    assert_eq!(finished.stdout, "1048576\non the host\n", "{finished:?}");
    assert!(finished.stderr.contains("not permitted"), "{finished:?}");
}

#[test]
fn an_environment_variable_is_set() {
    assert_eq!(said("env"), "hello there");
}

#[test]
fn a_user_and_groups_are_the_programs() {
    assert_eq!(
        said("id"),
        "uid=1000(guest) gid=1000(guest) groups=1000(guest),2000(extra)"
    );
}

#[test]
fn a_working_directory_is_entered() {
    assert_eq!(said("pwd"), "/var/www");
}

#[test]
fn a_hostname_is_set_and_known() {
    assert!(
        said("hostname").starts_with("dressed"),
        "{}",
        said("hostname")
    );
    assert!(said("hosts").contains("dressed"), "{}", said("hosts"));
}

#[test]
fn name_servers_and_hosts_are_in_their_files() {
    let resolv = said("resolv");
    for part in [
        "nameserver 192.0.2.7",
        "search example.org",
        "options ndots:2",
    ] {
        assert!(resolv.contains(part), "{resolv}");
    }
    assert!(said("hosts").contains("192.0.2.8"), "{}", said("hosts"));
}

#[test]
fn a_ulimit_is_set_soft_and_hard() {
    assert_eq!(said("open"), "512 600");
}

#[test]
fn a_sysctl_of_the_network_is_set() {
    assert_eq!(said("sysctl"), "80");
}

#[test]
fn capabilities_are_those_asked_for() {
    // Bits 12 and 25.
    let caps = said("caps");
    assert!(caps.contains("CapBnd:\t0000000002001000"), "{caps}");
}

#[test]
fn no_new_privileges_is_set() {
    assert_eq!(said("nnp"), "NoNewPrivs:\t1");
}

#[test]
fn the_engines_seccomp_profile_is_in_force() {
    assert_eq!(said("seccomp"), "Seccomp:\t2");
}

#[test]
fn a_tmpfs_is_mounted_with_its_options() {
    let mount = said("scratch");
    assert!(
        mount.contains("tmpfs") && mount.contains("noexec"),
        "{mount}"
    );
    assert!(mount.contains("size=1024k"), "{mount}");
    assert_eq!(said("scratchwrite"), "");
}

#[test]
fn a_read_only_root_cannot_be_written() {
    assert!(
        said("rootwrite").contains("Read-only file system"),
        "{}",
        said("rootwrite")
    );
}

#[test]
fn shared_memory_has_the_size_asked_for() {
    assert!(said("shm").contains("size=3072k"), "{}", said("shm"));
}

#[test]
fn the_oom_score_is_adjusted() {
    assert_eq!(said("oom"), "300");
}

#[test]
fn an_init_is_the_first_process() {
    assert!(said("init").contains("init"), "{}", said("init"));
}

#[test]
fn a_device_is_there_by_the_name_asked_for() {
    assert!(
        said("device").starts_with("c") && said("device").contains("1,   5"),
        "{}",
        said("device")
    );
}

#[test]
fn what_engines_mask_is_masked() {
    let sys = said("procsys");
    assert!(
        sys.contains("Read-only") || sys.contains("ermission denied"),
        "{sys}"
    );
}

#[test]
fn seccomp_can_be_switched_off_and_replaced() {
    let off = engine().shell(
        &["--security-opt", "seccomp=unconfined"],
        "grep Seccomp: /proc/self/status",
    );
    assert_eq!(off, "Seccomp:\t0\n");
    let profile = engine().world().dir().join("seccomp.json");
    let text = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }],
    });
    std::fs::write(&profile, text.to_string()).unwrap();
    let option = format!("seccomp={}", profile.display());
    let own = engine().shell(
        &["--security-opt", &option],
        "mkdir /tmp/x 2>&1; touch /tmp/y && echo made",
    );
    assert!(
        own.contains("Function not implemented") && own.contains("made"),
        "{own}"
    );
}

#[test]
fn a_privileged_container_may_mount() {
    if runtime() == Runtime::Runc {
        // A container cannot have devices that its machine lacks.
        println!("skipped: a privileged container of runc needs all capabilities of the host");
        return;
    }
    let script = "mkdir /mnt && mount -t tmpfs none /mnt && grep -c ' /mnt ' /proc/mounts";
    assert_eq!(engine().shell(&["--privileged"], script), "1\n");
}
