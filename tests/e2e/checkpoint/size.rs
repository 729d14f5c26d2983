//! Machines whose size has changed since their start.

use rvm_tests::{Bundle, Rvm};
use serde_json::json;

use super::{end, restore, save, start, wait_for_more, world, world_for_long};

/// As much as this is in a file in memory, in MiB: more than the machine started with.
const FILE_MIB: u64 = 220;

const SCRIPT: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

/// A container with one CPU and 128 MiB, of which a file may have all.
fn small() -> Bundle {
    let tmpfs = json!({
        "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["size=1g"],
    });
    let bundle = Bundle::shell(SCRIPT).mount(tmpfs);
    bundle.with(|config| {
        let resources = &mut config["linux"]["resources"];
        resources["memory"] = json!({ "limit": 128 << 20 });
        resources["cpu"] = json!({ "quota": 100_000, "period": 100_000 });
    })
}

fn shell(rvm: &Rvm, script: &str) -> String {
    rvm.ok(&["exec", "box", "sh", "-c", script])
}

/// The machine's memory by sysinfo(2), in MiB.
fn memory(rvm: &Rvm) -> u64 {
    let kib = shell(rvm, "busybox free -k | awk '/^Mem:/ { print $2 }'");
    kib.trim().parse::<u64>().unwrap() >> 10
}

fn update(rvm: &Rvm, options: &[&str]) {
    rvm.ok(&[&["update"], options, &["box"]].concat());
}

#[test]
fn a_machine_that_has_grown_goes_on_with_what_it_was_given_and_still_changes() {
    let Some(rvm) = world_for_long() else { return };
    let bundle = small();
    let image = rvm.path("image");
    let output = start(&rvm, &bundle, "box");
    wait_for_more(&output, 0);
    let before = memory(&rvm);
    update(&rvm, &["--memory", "900m", "--cpu-quota", "200000"]);
    let grown = memory(&rvm);
    assert!(grown > before + 700, "{before} MiB, then {grown}");
    assert_eq!(shell(&rvm, "nproc"), "2\n");
    let fill = format!("yes 0123456789abcdef | head -c {FILE_MIB}m > /dev/shm/file");
    shell(&rvm, &fill);
    let sum = || shell(&rvm, "md5sum /dev/shm/file");
    let expected = sum();

    for round in 0..2 {
        save(&rvm, "box", &image, &[]);
        let output = restore(&rvm, &bundle, &image, "box");
        wait_for_more(&output, 0);
        assert_eq!(memory(&rvm), grown, "round {round}");
        assert_eq!(shell(&rvm, "nproc"), "2\n");
        assert_eq!(sum(), expected, "round {round}");
    }
    shell(&rvm, "rm /dev/shm/file");
    // A checkpoint in memory counts for the container, beside what it has itself.
    update(&rvm, &["--memory", "400m", "--cpu-quota", "100000"]);
    let left = memory(&rvm);
    assert!(left + 300 < grown, "{left} MiB are still there");
    save(&rvm, "box", &image, &[]);
    restore(&rvm, &bundle, &image, "box");
    update(&rvm, &["--memory", "900m", "--cpu-quota", "200000"]);
    assert!(memory(&rvm) > before + 700);
    shell(&rvm, &fill);
    assert_eq!(sum(), expected);
    end(&rvm, "box");
}

#[test]
fn a_machine_that_has_shrunk_goes_on_and_comes_back() {
    let Some(rvm) = world() else { return };
    let bundle = small();
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    let before = memory(&rvm);
    update(&rvm, &["--memory", "64m"]);
    let shrunk = memory(&rvm);
    assert!(shrunk + 50 < before, "{before} MiB, then {shrunk}");
    save(&rvm, "box", &image, &[]);
    restore(&rvm, &bundle, &image, "box");
    assert_eq!(memory(&rvm), shrunk);
    update(&rvm, &["--memory", "96m"]);
    assert!((shrunk + 1..before).contains(&memory(&rvm)));
    update(&rvm, &["--memory", "128m"]);
    assert_eq!(memory(&rvm), before);
    end(&rvm, "box");
}
