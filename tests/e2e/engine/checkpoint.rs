//! Checkpoints of Docker's: `docker checkpoint create`, and `docker start --checkpoint`.

use rvm_tests::command::eventually;
use rvm_tests::engine::{Container, Runtime, runtime};

use crate::engine;

/// Counts, and says so.
const COUNTS: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";

/// Whether the runtime that is tested can save containers here.
fn is_possible() -> bool {
    let possible = runtime() == Runtime::Rvm && rvm_tests::engine() == "kvm";
    if !possible {
        println!("skipped: checkpoints are the kvm engine's");
    }
    possible
}

/// The last number that a container has counted to. All before it are there, once and in order.
fn counted(container: &Container<'_>) -> usize {
    let logs = container.logs();
    for (index, line) in logs.lines().enumerate() {
        assert_eq!(line, format!("line {}", index + 1), "{logs}");
    }
    logs.lines().count()
}

fn counts_on(container: &Container<'_>) {
    let before = counted(container);
    eventually("it counts on", || counted(container) > before + 3);
}

#[test]
fn a_container_ends_with_a_checkpoint_and_goes_on_from_it() {
    if !is_possible() {
        return;
    }
    let container = engine().start(&["--memory", "64m"], &["sh", "-c", COUNTS]);
    container.wait_for_log("line 3\n");
    engine().ok(&["checkpoint", "create", &container.name, "one"]);
    container.wait_for_status("exited");
    assert_eq!(container.inspect(".State.ExitCode"), "137");
    let list = container.ok(&["checkpoint", "ls"]);
    assert!(list.contains("one\n"), "{list}");
    let before = counted(&container);
    container.ok(&["start", "--checkpoint", "one"]);
    assert_eq!(container.status(), "running");
    counts_on(&container);
    assert!(counted(&container) > before);
    // It is a container like any other, with the network that Docker has given it now.
    let address = container.inspect(".NetworkSettings.IPAddress");
    let addresses = container.shell("ip -4 address show eth0");
    assert!(addresses.contains(&format!("{address}/")), "{addresses}");
    container.ok(&["stop", "--time", "1"]);
    assert_eq!(container.inspect(".State.ExitCode"), "137");
}

#[test]
fn a_container_runs_on_after_a_checkpoint_if_it_is_to() {
    if !is_possible() {
        return;
    }
    let container = engine().start(&["--memory", "64m"], &["sh", "-c", COUNTS]);
    container.wait_for_log("line 3\n");
    engine().ok(&[
        "checkpoint",
        "create",
        "--leave-running",
        &container.name,
        "one",
    ]);
    assert_eq!(container.status(), "running");
    counts_on(&container);
    assert_eq!(container.shell("echo here"), "here\n");
}
