//! What the agent costs, in instructions. Run by hand, with `RVM_TEST_QEMU_ARGS="-icount
//! shift=0,sleep=off"`: a virtual nanosecond is an instruction then.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use support::Bundle;

/// A profile of dockerd's size: most system calls are allowed by name, on three architectures.
fn add_profile(spec: &mut serde_json::Value) {
    let header = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap();
    let names = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define __NR_"));
    let names: Vec<_> = names.filter_map(|line| line.split(' ').next()).collect();
    spec["linux"]["seccomp"] = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": names[..names.len() - 10], "action": "SCMP_ACT_ALLOW" }],
    });
}

type Change = fn(&mut serde_json::Value);

/// Reads the run time of the agent, and of a container so far.
async fn agent_time(guest: &support::Guest, id: &str) -> u64 {
    let command = "cat /proc/1/schedstat";
    let bundle = Bundle::shell(guest.machine, id, command).with(|spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid");
    });
    let text = guest.run(&bundle).await.unwrap().stdout;
    text.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

fn drop_namespace(spec: &mut serde_json::Value, kind: &str) {
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != kind);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn a_container_costs_this_many_instructions() {
    const ROUNDS: u64 = 10;
    let guest = guest_or_skip!();
    let answer = guest
        .agent
        .check(support::context(), &Default::default())
        .await
        .unwrap();
    eprintln!(
        "boot: {} k",
        (answer.ready_ns - answer.init_started_ns) / 1000
    );
    agent_time(&guest, "warm").await;
    let none = agent_time(&guest, "a").await;
    let one = agent_time(&guest, "b").await;
    let cost =
        |before: u64, after: u64| (after - before).saturating_sub(one - none) / ROUNDS / 1000;
    let variants: [(&str, Change); 6] = [
        ("with a seccomp profile like dockerd's", add_profile),
        ("a container", |_| {}),
        ("without network", |spec| drop_namespace(spec, "network")),
        ("without pid namespace", |spec| drop_namespace(spec, "pid")),
        ("without ipc namespace", |spec| drop_namespace(spec, "ipc")),
        ("without mounts", |spec| {
            spec["mounts"] = serde_json::json!([]);
            spec["linux"]["maskedPaths"] = serde_json::json!([]);
        }),
    ];
    let mut before = one;
    for (index, (label, change)) in variants.into_iter().enumerate() {
        for round in 0..ROUNDS {
            let id = format!("t{index}-{round}");
            let bundle = Bundle::new(guest.machine, &id, &["/bin/true"]).with(change);
            guest.run(&bundle).await.unwrap();
        }
        let after = agent_time(&guest, &format!("after-{index}")).await;
        eprintln!("agent, {label}: {} k", cost(before, after));
        before = after;
    }
    let bundle = Bundle::shell(guest.machine, "own", "head -n1 /sys/fs/cgroup/cpu.stat");
    eprintln!(
        "its own processes: {} (us are k)",
        guest.run(&bundle).await.unwrap().stdout
    );
    guest
        .run_in_background(&Bundle::new(guest.machine, "bg", &["sleep", "1000"]))
        .await;
    let before = agent_time(&guest, "d").await;
    for round in 0..ROUNDS {
        guest.exec_shell("bg", &format!("e{round}"), "true").await;
    }
    let after = agent_time(&guest, "e").await;
    eprintln!("agent, an exec: {} k", cost(before, after));
}
