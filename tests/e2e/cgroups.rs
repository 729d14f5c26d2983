//! The control groups of a container on the host.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rvm_tests::command::finish;
use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};

/// The cgroups of a process, by controller; that of cgroup v2 has an empty name.
fn groups_of(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let parse = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// Whether the host's controllers are in cgroup v2.
fn is_version_two() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of a cgroup, whose name depends on the version.
fn read(group: &str, [controller, one, two]: [&str; 3]) -> String {
    let path: PathBuf = match is_version_two() {
        true => format!("/sys/fs/cgroup{group}/{two}"),
        false => format!("/sys/fs/cgroup/{controller}{group}/{one}"),
    }
    .into();
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

/// The cgroup of a container's reported pid for a controller.
fn group(rvm: &Rvm, id: &str, controller: &str) -> String {
    let pid = rvm.state(id)["pid"].as_i64().unwrap() as i32;
    let key = if is_version_two() { "" } else { controller };
    groups_of(pid)[key].clone()
}

/// The overhead of a machine that `rvm overhead` reports, in MiB.
fn overhead(rvm: &Rvm, memory: &str) -> u64 {
    let text = rvm.ok(&["overhead", "--memory", memory]);
    let (_, more) = text.split_once("memory: ").unwrap();
    more.split_once("Mi\n").unwrap().0.parse().unwrap()
}

fn with_resources(resources: Value) -> Bundle {
    Bundle::new(&["sleep", "1000"]).with(|config| {
        for (name, value) in resources.as_object().unwrap() {
            config["linux"]["resources"][name] = value.clone();
        }
    })
}

#[test]
fn what_runs_a_container_is_in_its_group_and_held_to_its_limits() {
    let rvm = Rvm::new();
    let cpu = one_cpu();
    let bundle = with_resources(json!({
        "memory": { "limit": 256 << 20, "reservation": 128 << 20 },
        "cpu": { "shares": 1024, "quota": 75_000, "period": 100_000, "cpus": cpu, "mems": "0" },
        "pids": { "limit": 100 },
    }));
    rvm.create(&bundle, "box");
    let memory = group(&rvm, "box", "memory");
    let path = fs::read_to_string(bundle.path().join("config.json")).unwrap();
    let wanted: Value = serde_json::from_str(&path).unwrap();
    assert_eq!(wanted["linux"]["cgroupsPath"], memory);
    for pid in rvm.processes() {
        for (controller, path) in groups_of(pid) {
            // cgroup v2 beside v1 has no controllers, and rvm does not use it.
            if is_version_two() || !controller.is_empty() {
                assert_eq!(path, memory, "process {pid}, {controller}");
            }
        }
    }
    let limit = read(&memory, ["memory", "memory.limit_in_bytes", "memory.max"]);
    let limit: u64 = limit.parse().unwrap();
    assert_eq!(limit, (256 + overhead(&rvm, "256m")) << 20);
    let reserved = ["memory", "memory.soft_limit_in_bytes", "memory.low"];
    assert_eq!(read(&memory, reserved), (limit - (128 << 20)).to_string());
    match is_version_two() {
        true => {
            assert_eq!(read(&memory, ["", "", "cpu.max"]), "75000 100000");
            assert_eq!(read(&memory, ["", "", "cpu.weight"]), "39");
        }
        false => {
            assert_eq!(read(&memory, ["cpu", "cpu.cfs_quota_us", ""]), "75000");
            assert_eq!(read(&memory, ["cpu", "cpu.shares", ""]), "1024");
        }
    }
    assert_eq!(read(&memory, ["cpuset", "cpuset.cpus", "cpuset.cpus"]), cpu);
    let pids: u64 = read(&memory, ["pids", "pids.max", "pids.max"])
        .parse()
        .unwrap();
    assert!(pids > 100, "the machine has threads of its own");
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_command_in_the_foreground_is_outside_of_the_group_that_it_removes() {
    let rvm = Rvm::new();
    let bundle = with_resources(json!({ "memory": { "limit": 64 << 20 } })).with(|config| {
        config["process"]["args"] = json!(["sh", "-c", "echo; read line; tail /dev/zero"]);
    });
    let mut run = rvm.spawn_piped(&bundle, "box");
    run.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let text = fs::read_to_string(bundle.path().join("config.json")).unwrap();
    let wanted: Value = serde_json::from_str(&text).unwrap();
    let command = run.id().cast_signed();
    let key = if is_version_two() { "" } else { "memory" };
    for pid in rvm.processes() {
        let is_inside = wanted["linux"]["cgroupsPath"] == groups_of(pid)[key];
        assert_eq!(is_inside, pid != command, "process {pid}");
    }
    drop(run.stdin.take());
    run.wait().unwrap();
    rvm.assert_nothing_left();
}

#[test]
fn the_group_is_gone_when_the_container_is() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("exit 3");
    // In the foreground, where the command is the container's monitor.
    assert_eq!(rvm.run(&bundle, "box").code, 3);
    rvm.assert_nothing_left();
    rvm.create(&bundle, "box");
    let monitor = rvm.state("box")["pid"].as_i64().unwrap() as i32;
    rvm_tests::command::signal(monitor, libc::SIGKILL);
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn containers_with_one_group_are_warned_of_and_end_one_by_one() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    rvm.create(&bundle, "one");
    let mut run = rvm.command(&["run", "--detach", "--bundle"]);
    run.arg(bundle.write()).arg("two").stdout(Stdio::null());
    let log = rvm.path("run.log");
    run.stderr(fs::File::create(&log).unwrap());
    assert!(run.status().unwrap().success());
    let said = fs::read_to_string(log).unwrap();
    assert!(said.contains("container's cgroup is not empty: "), "{said}");
    rvm.ok(&["delete", "--force", "one"]);
    assert_eq!(rvm.status("two"), "running", "and left alone");
    rvm.ok(&["delete", "--force", "two"]);
}

#[test]
fn a_limit_that_the_host_cannot_have_is_refused_by_name() {
    let rvm = Rvm::new();
    for (resources, field) in [
        (json!({ "cpu": { "cpus": "4000" } }), "cpu.cpus"),
        (
            json!({ "blockIO": {
                "throttleReadBpsDevice": [{ "major": 4000, "minor": 1, "rate": 1000 }],
            } }),
            "blockIO.throttleReadBpsDevice",
        ),
    ] {
        let finished = rvm.run(&with_resources(resources), "box");
        assert_eq!(finished.code, 1);
        let expected = format!("linux.resources.{field}");
        assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
        rvm.assert_nothing_left();
    }
}

/// The device number of a disk of the host: a loop device without a file is enough.
fn disk() -> Option<(u32, u32)> {
    // It may be built in or loaded already.
    let _ = Command::new("modprobe").arg("loop").output();
    let found = Command::new("losetup").arg("--find").output().ok()?;
    let path = String::from_utf8(found.stdout).unwrap();
    let number = fs::metadata(path.trim()).ok()?.rdev();
    Some((rustix::fs::major(number), rustix::fs::minor(number)))
}

#[test]
fn disks_are_limited_for_the_machine() {
    let Some((major, minor)) = disk() else {
        println!("skipped: this host has no loop devices");
        return;
    };
    let rvm = Rvm::new();
    let rate = json!([{ "major": major, "minor": minor, "rate": 1 << 20 }]);
    let mut resources = json!({ "blockIO": { "throttleReadBpsDevice": rate } });
    let expected = match is_version_two() {
        true => {
            // The file of the host's cgroup, and that of the guest's.
            resources["unified"] = json!({
                "io.max": format!("{major}:{minor} wiops=77"), "memory.high": "100000000",
            });
            format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=77")
        }
        false => format!("{major}:{minor} 1048576"),
    };
    rvm.create(&with_resources(resources), "box");
    let files = ["blkio", "blkio.throttle.read_bps_device", "io.max"];
    assert_eq!(read(&group(&rvm, "box", "blkio"), files), expected);
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_container_may_use_what_it_was_given_and_no_more() {
    let rvm = Rvm::new();
    // A file on a tmpfs is memory of the guest. It reaches the container's limit before the host's.
    // While it exists, the shell has hardly any memory left for its own program's pages and reads
    // them from the host again and again, so the file is removed at once.
    let fill = "dd if=/dev/zero of=/dev/shm/file bs=1M count=200 2>/dev/null; s=$?; \
                : >/dev/shm/file; echo $s";
    let bundle = Bundle::shell(fill).with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 96 << 20, "swap": 96 << 20 });
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts[3]["options"] = json!(["size=256m"]);
    });
    let finished = rvm.run(&bundle, "box");
    // The guest kills the shell or dd; the machine survives.
    assert!(
        !finished.stderr.contains("sandbox ended"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stdout.starts_with("0\n"), "{}", finished.stdout);
}

#[test]
fn the_guest_has_memory_left_when_its_containers_have_none() {
    let rvm = Rvm::new().configured("memory_mib = 64");
    let script = "tail /dev/zero; echo $?; cat /groups/memory.events";
    for limit in [-1, 64 << 20] {
        let groups = json!({ "destination": "/groups", "type": "cgroup", "source": "cgroup" });
        let bundle = Bundle::shell(script).mount(groups).with(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
        });
        let finished = rvm.run(&bundle, "box");
        assert!(finished.stdout.starts_with("137\n"), "{finished:?}");
        let count = |event: &str| {
            let mut lines = finished.stdout.lines();
            lines.find_map(|line| line.strip_prefix(event)?.trim().parse::<u32>().ok())
        };
        // Its own limit was reached, or that of all containers, never the guest's. `oom` counts
        // allocations that failed, of which others may come while the killed process ends.
        let own = count("oom ").map(|failed| failed > 0);
        assert_eq!(own, Some(limit > 0), "{limit}: {finished:?}");
        assert_eq!(count("oom_kill "), Some(1), "{limit}: {finished:?}");
    }
}

#[test]
fn a_kill_for_want_of_memory_in_the_guest_is_counted_on_the_host() {
    // Engines read it there.
    let rvm = Rvm::new();
    let hog = "tail /dev/zero";
    for (id, script, kills) in [
        ("hog", hog, "1"),
        ("other", "sleep 1000 & kill -9 $!; wait", "0"),
    ] {
        let limit = json!({ "memory": { "limit": 64 << 20 } });
        let bundle = with_resources(limit).with(|config| {
            config["process"]["args"] = json!(["sh", "-c", script]);
        });
        rvm.create(&bundle, id);
        let group = group(&rvm, id, "memory");
        let limit = || read(&group, ["memory", "memory.limit_in_bytes", "memory.max"]);
        let before = limit();
        rvm.ok(&["start", id]);
        rvm.wait_for_status(id, "stopped");
        let events = read(&group, ["memory", "memory.oom_control", "memory.events"]);
        let count = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        assert_eq!(count, Some(kills), "{id}: {events}");
        assert_eq!(limit(), before);
        rvm.ok(&["delete", id]);
    }
}

/// A CPU that this process may run on, but not the first CPU of the nested machine, which enters
/// no guest.
fn one_cpu() -> String {
    let last = std::thread::available_parallelism().unwrap().get() - 1;
    last.to_string()
}

#[test]
fn an_update_holds_on_the_host_too() {
    let rvm = Rvm::new();
    // The numbers are the host's CPUs, not the guest's.
    let bundle = with_resources(json!({
        "memory": { "limit": 256 << 20 }, "cpu": { "cpus": one_cpu() },
    }));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let group = group(&rvm, "box", "memory");
    let limit = || -> u64 {
        let files = ["memory", "memory.limit_in_bytes", "memory.max"];
        read(&group, files).parse().unwrap()
    };
    let before = limit();
    let options = ["--memory", "128m", "--cpu-quota", "30000", "box"];
    rvm.ok(&[&["update"], &options[..]].concat());
    // A smaller machine has a little less overhead.
    let less = (before - limit()) >> 20;
    assert!((128..136).contains(&less), "{less} MiB");
    match is_version_two() {
        true => assert_eq!(read(&group, ["", "", "cpu.max"]), "30000 100000"),
        false => assert_eq!(read(&group, ["cpu", "cpu.cfs_quota_us", ""]), "30000"),
    }
    rvm.ok(&["update", "--memory", "256m", "box"]);
    assert_eq!(limit(), before);
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn swap_is_limited_in_the_guest_and_on_the_host_and_said_to_be_missing() {
    let rvm = Rvm::new();
    let bundle = with_resources(json!({ "memory": { "limit": 96 << 20, "swap": 160 << 20 } }));
    let bundle =
        bundle.mount(json!({ "destination": "/groups", "type": "cgroup", "source": "cgroup" }));
    let mut create = rvm.command(&["create", "--bundle"]);
    let log = rvm.path("create.log");
    create.arg(bundle.write()).arg("box").stdout(Stdio::null());
    create.stderr(fs::File::create(&log).unwrap());
    assert!(create.status().unwrap().success());
    let said = fs::read_to_string(log).unwrap();
    assert!(said.contains("a guest has no swap"), "{said}");
    rvm.ok(&["start", "box"]);
    let group = group(&rvm, "box", "memory");
    let number = |files| -> u64 { read(&group, files).parse().unwrap() };
    // As the host's version counts: beside memory, or together with it.
    let on_host = || match is_version_two() {
        true => number(["", "", "memory.swap.max"]),
        false => {
            let together = number(["memory", "memory.memsw.limit_in_bytes", ""]);
            together - number(["memory", "memory.limit_in_bytes", ""])
        }
    };
    let in_guest = || -> u64 {
        let text = rvm.ok(&["exec", "box", "cat", "/groups/memory.swap.max"]);
        text.trim().parse().unwrap()
    };
    assert_eq!((on_host(), in_guest()), (64 << 20, 64 << 20));
    let seen = rvm.ok(&["exec", "box", "grep", "SwapTotal", "/proc/meminfo"]);
    assert!(seen.ends_with(" 0 kB\n"), "{seen}");
    let updated = rvm.call(&["update", "--memory-swap", "128m", "box"]);
    assert_eq!(updated.code, 0, "{}", updated.stderr);
    assert!(
        updated.stderr.contains("a guest has no swap"),
        "{updated:?}"
    );
    assert_eq!((on_host(), in_guest()), (32 << 20, 32 << 20));
    let updated = rvm.call(&["update", "--memory-swap", "96m", "box"]);
    assert!(!updated.stderr.contains("swap"), "{updated:?}");
    assert_eq!((on_host(), in_guest()), (0, 0));
    let refused = rvm.call(&["update", "--memory-swap", "64m", "box"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("memory.swap"), "{}", refused.stderr);
    assert_eq!((on_host(), in_guest()), (0, 0), "as before");
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_scope_without_systemd_is_refused_and_nothing_of_the_container_is_left() {
    if Path::new("/run/systemd/system").is_dir() {
        println!("skipped: this host has systemd");
        return;
    }
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["linux"]["cgroupsPath"] = json!("machines-test.slice:rvm:box");
    });
    let dir = bundle.write().to_str().unwrap();
    let finished = finish(rvm.command(&["--systemd-cgroup", "run", "--bundle", dir, "box"]));
    assert_ne!(finished.code, 0);
    let words = "cannot connect to systemd";
    assert_eq!(
        finished.stderr.matches(words).count(),
        1,
        "{}",
        finished.stderr
    );
    assert_eq!(rvm.ok(&["list", "--quiet"]), "");
}
