//! Limits: what the container sees, and what is enforced.

use std::sync::OnceLock;

use rvm_tests::command::eventually;
use rvm_tests::engine::{Container, Runtime, runtime};

use crate::engine;

/// A container with limits.
fn limited() -> &'static Container<'static> {
    static LIMITED: OnceLock<Container<'static>> = OnceLock::new();
    LIMITED.get_or_init(|| {
        let options = ["--memory", "256m", "--cpus", "1"];
        engine().start(&options, &["sleep", "100000"])
    })
}

/// Whether a container sees its limits. With runc it sees the host.
fn sees_its_limits() -> bool {
    if runtime() == Runtime::Runc {
        println!("skipped: a container of runc sees the host");
    }
    runtime() == Runtime::Rvm
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_is_what_meminfo_says() {
    if sees_its_limits() {
        let total = kib(&limited().shell("cat /proc/meminfo"), "MemTotal:");
        assert!((256 << 10..320 << 10).contains(&total), "{total} KiB");
    }
}

#[test]
fn memory_is_what_free_says() {
    if sees_its_limits() {
        let total = kib(&limited().shell("free -k"), "Mem:");
        assert!((256 << 10..320 << 10).contains(&total), "{total} KiB");
    }
}

#[test]
fn cpus_are_what_nproc_and_cpuinfo_say() {
    if sees_its_limits() {
        assert_eq!(
            limited().shell("nproc; grep -c ^processor /proc/cpuinfo"),
            "1\n1\n"
        );
    }
}

#[test]
fn top_and_uptime_tell_of_the_machine_and_not_of_the_host() {
    if sees_its_limits() {
        let top = limited().shell("top -bn1 | head -1; cut -d. -f1 /proc/uptime");
        let uptime: u64 = top.lines().last().unwrap().parse().unwrap();
        let host = std::fs::read_to_string("/proc/uptime").unwrap();
        let host: f64 = host.split(' ').next().unwrap().parse().unwrap();
        assert!((uptime as f64) < host, "{top}");
    }
}

#[test]
fn an_update_changes_the_machine_too() {
    if !sees_its_limits() || std::thread::available_parallelism().unwrap().get() < 2 {
        return println!("skipped: this needs rvm and two CPUs");
    }
    let options = ["--memory", "256m", "--memory-swap", "512m", "--cpus", "1"];
    let container = engine().start(&options, &["sleep", "100000"]);
    let before = kib(&container.shell("cat /proc/meminfo"), "MemTotal:");
    let options = ["--memory", "128m", "--memory-swap", "256m", "--cpus", "2"];
    engine().ok(&[&["update"], &options[..], &[&container.name]].concat());
    assert_eq!(container.shell("nproc"), "2\n");
    let less = before - kib(&container.shell("cat /proc/meminfo"), "MemTotal:");
    assert!((120 << 10..140 << 10).contains(&less), "{less} KiB less");
    let script = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/1/cgroup) && cat memory.max cpu.max";
    assert_eq!(container.shell(script), "134217728\n200000 100000\n");
}

#[test]
fn swap_is_limited_where_there_is_any() {
    if !sees_its_limits() {
        return;
    }
    let options = ["--memory", "64m", "--memory-swap", "96m"];
    let container = engine().start(&options, &["sleep", "100000"]);
    let own = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/1/cgroup)";
    let limit = || container.shell(&format!("{own} && cat memory.max memory.swap.max"));
    assert_eq!(limit(), "67108864\n33554432\n");
    let swap = "awk '/^SwapTotal/ { print $2 }' /proc/meminfo";
    assert_eq!(container.shell(swap), "0\n", "a guest has none");
    let change = ["update", "--memory", "64m", "--memory-swap", "64m"];
    engine().ok(&[&change[..], &[&container.name]].concat());
    assert_eq!(limit(), "67108864\n0\n");
    // The engines allow as much swap as memory by default: rvm's warning of it is for logs.
    let finished = engine().run(&["--memory", "64m"], &["echo", "quiet"]);
    assert_eq!((&*finished.stdout, &*finished.stderr), ("quiet\n", ""));
}

#[test]
fn processes_are_limited() {
    let script = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; wait";
    // In a container of its own, with which these processes end.
    let finished = engine().run(&["--pids-limit", "40"], &["sh", "-c", script]);
    assert!(finished.stderr.contains("can't fork"), "{finished:?}");
}

#[test]
fn a_program_that_takes_too_much_memory_is_killed() {
    let options = ["--memory", "64m", "--memory-swap", "64m"];
    let container = engine().create(&options, &["sh", "-c", "tail /dev/zero; echo survived $?"]);
    let finished = engine().call(&["start", "--attach", &container.name]);
    assert_eq!(finished.stdout, "survived 137\n", "{}", finished.stderr);
    // Conmon leaves this note in its working directory, and Podman 4 looks for it elsewhere.
    let note = engine().world().dir().join("oom");
    // The engine may learn of the kill after the end.
    eventually("the engine knows of the kill", || {
        container.inspect(".State.OOMKilled") == "true" || note.exists()
    });
}

#[test]
fn a_program_that_is_killed_otherwise_is_not_said_to_have_taken_too_much() {
    let container = engine().start(&["--memory", "64m"], &["sleep", "100000"]);
    container.ok(&["kill"]);
    container.wait_for_status("exited");
    assert_eq!(container.inspect(".State.OOMKilled"), "false");
}
