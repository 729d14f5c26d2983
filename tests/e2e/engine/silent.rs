//! Guests that do not answer any more: the processes that run their machines are stopped. What the
//! engine is asked to end, ends, and leaves nothing (`Engine::end` looks for that).

use std::time::{Duration, Instant};

use rvm_tests::engine::{Container, Runtime, runtime};

use crate::engine;

/// How long the end of a container may take beyond the grace that it gets.
const PATIENCE: Duration = Duration::from_secs(15);

/// A container whose guest is silent. runc has no guest.
fn silent() -> Option<Container<'static>> {
    if runtime() == Runtime::Runc {
        println!("skipped: a container of runc has no guest");
        return None;
    }
    let container = engine().start(&[], &["sleep", "100000"]);
    let world = engine().world();
    let id = container.inspect(".Id");
    let is_machine = |(pid, line): &(i32, String)| {
        let groups = std::fs::read_to_string(world.outside(&format!("proc/{pid}/cgroup")));
        groups.is_ok_and(|groups| groups.contains(&id))
            && ["qemu-system", "rvm-vmm "]
                .iter()
                .any(|part| line.contains(part))
    };
    let machine = world.processes().into_iter().filter(is_machine);
    let machine: Vec<String> = machine.map(|(pid, _)| pid.to_string()).collect();
    assert!(!machine.is_empty(), "there is no machine");
    let stopped = world.command("kill").arg("-STOP").args(machine).status();
    assert!(stopped.unwrap().success());
    Some(container)
}

/// Asserts that a verb ends the container, within this grace and [`PATIENCE`].
fn assert_ends(container: &Container<'_>, verb: &[&str], grace: u64) {
    let start = Instant::now();
    container.ok(verb);
    container.wait_for_status("exited");
    let took = start.elapsed();
    println!("{verb:?}: {took:.1?}");
    assert!(
        took < PATIENCE + Duration::from_secs(grace),
        "{verb:?} took {took:.1?}"
    );
    assert_eq!(container.inspect(".State.ExitCode"), "137");
    container.ok(&["rm"]);
}

#[test]
fn a_silent_guest_is_killed() {
    if let Some(container) = silent() {
        assert_ends(&container, &["kill"], 0);
    }
}

#[test]
fn a_silent_guest_is_stopped() {
    if let Some(container) = silent() {
        assert_ends(&container, &["stop", "--time", "2"], 2);
    }
}

#[test]
fn a_silent_guest_is_removed_by_force() {
    if let Some(container) = silent() {
        let start = Instant::now();
        container.ok(&["rm", "--force"]);
        let took = start.elapsed();
        println!("rm --force: {took:.1?}");
        // Podman gives the container its usual ten seconds.
        assert!(took < PATIENCE + Duration::from_secs(10), "{took:.1?}");
        assert_ne!(container.call(&["inspect"]).code, 0);
    }
}
