//! Checkpoints: `ctr container checkpoint --task`, and `ctr container restore --live`.

use std::fs;

use rvm_tests::Containerd;
use rvm_tests::command::eventually;

use super::{WAITS, go};

/// The checkpoint's name in containerd.
const NAME: &str = "localhost/checkpoint:1";

#[test]
fn a_container_goes_on_from_a_checkpoint_where_it_was() {
    let containerd = Containerd::new();
    if rvm_tests::engine() != "kvm" {
        containerd.start_container(&[], "box", WAITS);
        let refused = containerd.ctr(&["task", "checkpoint", "box"]);
        let words = "machines of the qemu engine cannot be saved";
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
        assert_eq!(containerd.task("box").unwrap().0, "RUNNING");
        return containerd.remove("box");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("count");
    let count = || -> u64 {
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let counts = "i=0; while :; do i=$((i+1)); echo $i >/go/count; sleep 0.1; done";
    let events = containerd.events();
    containerd.start_container(&[&go(&dir), "--memory-limit", "33554432"], "box", counts);
    eventually("it counts", || count() > 3);
    let first = count();
    containerd.ok(&["container", "checkpoint", "--rw", "--task", "box", NAME]);
    let last = count();
    assert_eq!(containerd.task("box").unwrap().0, "RUNNING");
    eventually("it counts on", || count() > last + 20);
    containerd.remove("box");
    // Not removed: a program may have had it open.
    fs::write(&path, "0").unwrap();

    containerd.ok(&["container", "restore", "--rw", "--live", "box", NAME]);
    assert_eq!(containerd.task("box").unwrap().0, "RUNNING");
    eventually("it counts", || count() > 0);
    let now = count();
    assert!((first..last + 20).contains(&now), "{first} {last} {now}");
    eventually("it counts on", || count() > now + 3);
    assert_eq!(containerd.exec("box", "one", "echo on").stdout, "on\n");
    containerd.remove("box");
    let told = events.until("/tasks/delete");
    let is_told = |topic: &str| told.iter().any(|line| line.starts_with(topic));
    assert!(is_told("/tasks/checkpointed"), "{told:?}");
    containerd.ok(&["image", "rm", NAME]);
}
