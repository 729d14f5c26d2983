//! A sandbox's machine follows the limits of its container while it runs.

use rvm_tests::{Bundle, Rvm};
use serde_json::json;

/// A container with one CPU and this much memory.
fn running(rvm: &Rvm, mib: u64) -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
        let resources = &mut config["linux"]["resources"];
        resources["memory"] = json!({ "limit": mib << 20 });
        resources["cpu"] = json!({ "quota": 100_000, "period": 100_000 });
        let cgroup = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup",
                             "source": "cgroup", "options": ["ro"] });
        config["mounts"].as_array_mut().unwrap().push(cgroup);
    });
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    bundle
}

fn end(rvm: &Rvm) {
    rvm.ok(&["delete", "--force", "box"]);
}

fn shell(rvm: &Rvm, script: &str) -> String {
    rvm.ok(&["exec", "box", "sh", "-c", script])
}

fn refused(rvm: &Rvm, options: &[&str]) -> String {
    let finished = rvm.call(&[&["update"], options, &["box"]].concat());
    assert_ne!(finished.code, 0, "{options:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    finished.stderr
}

/// The machine's memory by sysinfo(2), in MiB.
fn memory(rvm: &Rvm) -> u64 {
    let kib = shell(rvm, "busybox free -k | awk '/^Mem:/ { print $2 }'");
    kib.trim().parse::<u64>().unwrap() >> 10
}

/// The limit in the guest, in MiB.
fn limit(rvm: &Rvm) -> u64 {
    let files = "cat /sys/fs/cgroup/memory.max; awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo";
    let bytes = shell(rvm, files);
    let bytes: Vec<u64> = bytes.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(bytes[0], bytes[1]);
    bytes[0] >> 20
}

fn set_memory(rvm: &Rvm, mib: u64) {
    rvm.ok(&["update", "--memory", &format!("{mib}m"), "box"]);
    assert_eq!(limit(rvm), mib);
}

/// Makes a program use this much memory at once.
fn fill(rvm: &Rvm, mib: u64) {
    shell(
        rvm,
        &format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1"),
    );
}

fn is_kvm() -> bool {
    rvm_tests::engine() == "kvm"
}

#[test]
fn cpus_come_and_go_with_the_quota_as_far_as_there_is_room() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return println!("skipped: the host has one CPU");
    }
    let rvm = Rvm::new();
    let _bundle = running(&rvm, 128);
    let seen = "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online";
    assert_eq!(shell(&rvm, seen), "1\n1\n0\n");
    for (quota, expected) in [
        ("200000", "2\n2\n0-1\n"),
        ("50000", "1\n1\n0\n"),
        ("150000", "2\n2\n0-1\n"),
    ] {
        rvm.ok(&["update", "--cpu-quota", quota, "box"]);
        assert_eq!(shell(&rvm, seen), expected, "{quota}");
    }
    end(&rvm);

    let rvm = rvm.configured("max_vcpus = 1");
    let _bundle = running(&rvm, 128);
    let message = refused(&rvm, &["--cpu-quota", "200000"]);
    assert!(message.contains("max_vcpus"), "{message}");
    assert_eq!(
        shell(&rvm, "nproc; cat /sys/fs/cgroup/cpu.max"),
        "1\n100000 100000\n"
    );
    end(&rvm);
}

#[test]
fn a_container_that_may_run_on_one_cpu_can_be_given_another() {
    let count = std::thread::available_parallelism().unwrap().get();
    if count < 2 {
        return println!("skipped: the host has one CPU");
    }
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
        let cpu = (count - 1).to_string();
        config["linux"]["resources"]["cpu"] = json!({ "cpus": cpu });
    });
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    assert_eq!(shell(&rvm, "nproc"), "1\n");
    let both = format!("{}-{}", count - 2, count - 1);
    rvm.ok(&["update", "--cpuset-cpus", &both, "box"]);
    assert_eq!(shell(&rvm, "nproc"), "2\n");
    end(&rvm);
}

#[test]
fn memory_shrinks_with_the_limit_and_comes_back() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm, 256);
    let before = memory(&rvm);
    // The machine's limit on the host sinks too, below what the guest has touched.
    fill(&rvm, 200);
    set_memory(&rvm, 96);
    let gone = before - memory(&rvm);
    assert!((140..=170).contains(&gone), "{gone} MiB less");
    fill(&rvm, 70);
    set_memory(&rvm, 256);
    assert_eq!(memory(&rvm), before);
    fill(&rvm, 200);
    end(&rvm);
}

#[test]
fn memory_grows_with_the_limit_where_the_machine_can_have_more() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm, 128);
    let before = memory(&rvm);
    if !is_kvm() {
        let message = refused(&rvm, &["--memory", "400m"]);
        let names = ["linux.resources.memory.limit", "qemu engine"];
        assert!(names.iter().all(|name| message.contains(name)), "{message}");
        assert_eq!((memory(&rvm), limit(&rvm)), (before, 128));
        return end(&rvm);
    }
    for _ in 0..2 {
        set_memory(&rvm, 400);
        let grown = memory(&rvm) - before;
        assert!((256..=288).contains(&grown), "{grown} MiB more");
        fill(&rvm, 250);
        set_memory(&rvm, 128);
        let left = memory(&rvm).saturating_sub(before);
        assert!(left <= 128, "{left} MiB are still there");
    }
    end(&rvm);
}
