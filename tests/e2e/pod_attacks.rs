//! Containers of a pod that attack the machine they share: its agent, its kernel and each other.
//! The attempts are those of `tests/inside/attack.rs`.

use std::collections::BTreeMap;

use rvm_tests::bundle::DOCKER_CAPABILITIES;
use rvm_tests::pod::{POD, member, sandbox};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// Capabilities that Docker does not give and that reach nothing, either.
const HARMLESS: &str = "DAC_READ_SEARCH LINUX_IMMUTABLE NET_BROADCAST NET_ADMIN IPC_LOCK IPC_OWNER SYS_MODULE \
     SYS_PTRACE SYS_PACCT SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG LEASE \
     AUDIT_CONTROL MAC_OVERRIDE MAC_ADMIN WAKE_ALARM BLOCK_SUSPEND AUDIT_READ BPF \
     CHECKPOINT_RESTORE";

/// Capabilities that make a container the owner of its machine, or show it more than itself, as on
/// a host without machines, and what each reaches; docs/threat-model.md has the same table.
const OWNERS: [(&str, &[&str]); 4] = [
    ("PERFMON", &["perf"]),
    (
        "SYS_ADMIN",
        &["bpf", "core-pattern", "drivers", "perf", "shared-files"],
    ),
    ("SYS_RAWIO", &["io-permissions", "io-ports"]),
    ("SYSLOG", &["kernel-log"]),
];

/// A container of the pod that runs rvm-inside.
fn attacker(rvm: &Rvm, what: &str, more: &str) -> Bundle {
    let capabilities = with_capabilities(more);
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let bundle = member(rvm, "", POD).capabilities(&capabilities);
    std::fs::copy(INSIDE, bundle.rootfs("inside")).unwrap();
    bundle.with(|config| config["process"]["args"] = json!(["/inside", what, "-"]))
}

/// Docker's capabilities and these.
fn with_capabilities(more: &str) -> Vec<String> {
    let more = more.split_whitespace().map(|name| format!("CAP_{name}"));
    DOCKER_CAPABILITIES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(more)
        .collect()
}

/// A pod with a container that must be left alone.
fn pod_with_victim(rvm: &Rvm) -> [Bundle; 2] {
    let pod = sandbox(rvm);
    let victim = member(rvm, "echo secret > /secret; sleep 1000", POD);
    rvm.create(&victim, "victim");
    rvm.ok(&["start", "victim"]);
    [pod, victim]
}

/// Asserts that the victim works on, and removes the pod.
fn leave(rvm: &Rvm) {
    let secret = rvm.ok(&["exec", "victim", "cat", "/secret"]);
    assert_eq!(secret, "secret\n");
    for id in ["victim", "pod"] {
        rvm.ok(&["delete", "--force", id]);
    }
}

/// What an attacker has reached, by attempt.
fn reached(rvm: &Rvm, attacker: &Bundle) -> BTreeMap<String, String> {
    let run = rvm.run(attacker, "attacker");
    assert_eq!(run.code, 0, "{run:?}");
    println!("{}", run.stdout);
    let lines: Vec<_> = run
        .stdout
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    assert_eq!(lines.len(), 21, "{run:?}");
    let reached = lines
        .into_iter()
        .filter(|(_, what)| what.starts_with("reached"));
    reached
        .map(|(name, what)| (name.to_owned(), what.to_owned()))
        .collect()
}

#[test]
fn a_container_with_common_capabilities_reaches_nothing_of_its_pods_machine() {
    let rvm = Rvm::new();
    let _pod = pod_with_victim(&rvm);
    for more in ["", HARMLESS] {
        let reached = reached(&rvm, &attacker(&rvm, "attack", more));
        assert!(reached.is_empty(), "{reached:?}");
    }
    leave(&rvm);
}

#[test]
fn each_capability_of_a_machines_owner_reaches_what_the_threat_model_says() {
    let rvm = Rvm::new();
    let _pod = pod_with_victim(&rvm);
    for (capability, expected) in OWNERS {
        let reached = reached(&rvm, &attacker(&rvm, "attack", capability));
        let names: Vec<&str> = reached.keys().map(String::as_str).collect();
        assert_eq!(names, expected, "{capability}: {reached:#?}");
    }
    leave(&rvm);
}

#[test]
fn a_container_that_restarts_the_machine_ends_alone() {
    let rvm = Rvm::new();
    let _pod = pod_with_victim(&rvm);
    let run = rvm.run(&attacker(&rvm, "restart", HARMLESS), "attacker");
    assert_eq!(run.stdout, "restart\n", "{run:?}");
    assert_ne!(run.code, 0, "{run:?}");
    leave(&rvm);
}
