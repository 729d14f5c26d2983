//! What a container sees and may do, in a real guest.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use support::{Bundle, message, outcome};

#[tokio::test]
async fn capabilities_limits_and_flags_are_those_of_config_json() {
    let guest = guest_or_skip!();
    let command = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ulimit -n; ulimit -Hn; \
                   cat /proc/self/oom_score_adj; echo; ls /proc/self/fd";
    let bundle = Bundle::shell(guest.machine, "caps", command).with(|spec| {
        spec["process"]["oomScoreAdj"] = json!(321);
        spec["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
        spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_SYS_ADMIN"]);
    });
    let result = guest.run(&bundle).await.unwrap();
    let words: Vec<_> = result.stdout.split_whitespace().collect();
    let kill = "0000000000000020";
    let all = "00000000000004e1";
    assert_eq!(
        words[..10],
        [
            "CapInh:", kill, "CapPrm:", all, "CapEff:", all, "CapBnd:", all, "CapAmb:", kill
        ]
    );
    assert_eq!(words[10..14], ["NoNewPrivs:", "1", "Seccomp:", "0"]);
    // Of descriptors, the shell has its streams, and ls the directory it lists.
    assert_eq!(words[14..], ["512", "2048", "321", "0", "1", "2", "3"]);
}

#[tokio::test]
async fn limits_are_set_in_the_containers_own_cgroup() {
    let guest = guest_or_skip!();
    let command = "cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.max cpu.weight \
                   memory.high cgroup.procs";
    let bundle = Bundle::shell(guest.machine, "limits", command).with(|spec| {
        spec["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 64 << 20 },
            "pids": { "limit": 77 },
            "cpu": { "quota": 50000, "period": 100000, "shares": 1024, "cpus": "0" },
            "unified": { "memory.high": "41943040" },
        });
    });
    let expected = "67108864\n33554432\n77\n50000 100000\n39\n41943040\n1\n";
    let result = guest.run(&bundle).await.unwrap();
    assert!(result.stdout.starts_with(expected), "{result:?}");
}

#[tokio::test]
async fn running_out_of_memory_is_an_event() {
    let guest = guest_or_skip!();
    let mut events = guest
        .agent
        .events(ttrpc::context::with_timeout(0), &Default::default())
        .await
        .unwrap();
    let bundle = Bundle::new(guest.machine, "oom", &["tail", "/dev/zero"]).with(|spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    });
    let pid = guest.run_in_background(&bundle).await;
    assert_eq!(guest.wait("oom", "").await.unwrap(), 137);
    let mut seen = Vec::new();
    while seen.last() != Some(&"exit") {
        let event = events.recv().await.unwrap().unwrap();
        if event.has_oom() && event.oom().container_id == "oom" {
            seen.push("oom");
        } else if event.has_exit() && event.exit().container_id == "oom" {
            assert_eq!((event.exit().pid, event.exit().exit_status), (pid, 137));
            seen.push("exit");
        }
    }
    assert_eq!(seen, ["oom", "exit"]);
    guest.remove("oom").await.unwrap();
}

#[tokio::test]
async fn devices_are_there_and_others_are_out_of_reach() {
    let guest = guest_or_skip!();
    let command = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; ls -l /dev/ptmx /dev/fd | \
                   grep -o '[^ ]* -> .*'; cat /dev/kmsg; dd if=/dev/kvm2 of=/dev/null count=1; true";
    let bundle = Bundle::shell(guest.machine, "dev", command).with(|spec| {
        spec["linux"]["devices"] = json!([
            { "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 },
            { "path": "/dev/sub/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o600 },
        ]);
    });
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(
        result.stdout,
        "4\n/dev/fd -> /proc/self/fd\n/dev/ptmx -> pts/ptmx\n"
    );
    assert!(
        result
            .stderr
            .contains("/dev/kmsg': Operation not permitted"),
        "{}",
        result.stderr
    );
}

#[tokio::test]
async fn a_user_with_a_capability_executes_what_the_capability_allows() {
    let guest = guest_or_skip!();
    for (capabilities, is_allowed) in [(json!([]), false), (json!(["CAP_DAC_OVERRIDE"]), true)] {
        let id = format!("override-{is_allowed}");
        let bundle = Bundle::shell(guest.machine, &id, "").with(|spec| {
            spec["process"]["args"] = json!(["/bin/owners"]);
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 100 });
            let sets = [
                "bounding",
                "effective",
                "inheritable",
                "permitted",
                "ambient",
            ];
            for set in sets {
                spec["process"]["capabilities"][set] = capabilities.clone();
            }
        });
        let program = bundle.rootfs.join("bin/owners");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o744)).unwrap();
        match guest.run(&bundle).await {
            Ok(ended) => assert!(is_allowed && ended == outcome(0, ""), "{ended:?}"),
            Err(refused) => assert!(!is_allowed, "{refused:?}"),
        }
    }
}

#[tokio::test]
async fn seccomp_filters_with_and_without_no_new_privs() {
    let guest = guest_or_skip!();
    for nnp in [true, false] {
        let id = format!("seccomp-{nnp}");
        let bundle =
            Bundle::shell(guest.machine, &id, "mkdir /tmp/x; echo $?; sleep 100").with(|spec| {
                spec["process"]["noNewPrivileges"] = json!(nnp);
                spec["process"]["user"]["uid"] = json!(1000);
                spec["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 38 }],
                });
            });
        guest.run_in_background(&bundle).await;
        let result = guest.exec_shell(&id, "e", "mkdir /tmp/y").await;
        assert!(
            result.stderr.contains("Function not implemented"),
            "{result:?}"
        );
        guest.remove(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_hook_in_the_container_is_under_its_filter() {
    let guest = guest_or_skip!();
    let bundle = Bundle::shell(guest.machine, "filtered-hook", "true").with(|spec| {
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL" }],
        });
        spec["hooks"] = json!({ "startContainer": [
            { "path": "/bin/busybox", "args": ["mkdir", "/tmp/made"] },
        ] });
    });
    let refused = message(guest.run(&bundle).await);
    let expected = "error running startContainer hook #0: signal: bad system call";
    assert!(refused.contains(expected), "{refused}");
}

#[tokio::test]
async fn a_user_namespace_maps_root_to_somebody_else() {
    let guest = guest_or_skip!();
    let command = "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/oom_score_adj; \
                   echo -900 > /proc/self/oom_score_adj; touch /tmp/mine && ls -ln /tmp/mine | \
                   tr -s ' ' | cut -d' ' -f3; echo x > /dev/null && echo null; sleep 100";
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let bundle = Bundle::shell(guest.machine, "userns", command).with(|spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    });
    let status = std::process::Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(&bundle.rootfs)
        .status()
        .unwrap();
    assert!(status.success());
    let (streams, stdio) = guest.streams().await;
    guest.create(&bundle, stdio).await.unwrap();
    guest.start("userns").await.unwrap();
    let result = guest
        .exec_shell(
            "userns",
            "e",
            "id -u; readlink /proc/1/ns/user; \
        readlink /proc/self/ns/user",
        )
        .await;
    let lines: Vec<_> = result.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("0", lines[2]));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    guest.signal("userns", "", 9, false).await.unwrap();
    let result = streams.collect().await;
    assert!(
        result.stderr.contains("Permission denied"),
        "{}",
        result.stderr
    );
    guest.remove("userns").await.unwrap();
}

#[tokio::test]
async fn containers_of_a_pod_share_namespaces_by_path() {
    let guest = guest_or_skip!();
    let bundle = Bundle::new(guest.machine, "pause", &["sleep", "100"])
        .with(|spec| spec["hostname"] = json!("pod"));
    let pid = guest.run_in_background(&bundle).await;
    let bundle = Bundle::shell(
        guest.machine,
        "member",
        "hostname; ps | grep -c 'sleep 100'",
    )
    .with(|spec| {
        spec["hostname"] = json!(null);
        spec["linux"]["namespaces"] = json!([
            { "type": "mount" }, { "type": "cgroup" },
            { "type": "uts", "path": format!("/proc/{pid}/ns/uts") },
            { "type": "ipc", "path": format!("/proc/{pid}/ns/ipc") },
            { "type": "network", "path": format!("/proc/{pid}/ns/net") },
            { "type": "pid", "path": format!("/proc/{pid}/ns/pid") },
        ]);
    });
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(result.stdout.lines().next(), Some("pod"), "{result:?}");
    assert!(result.stdout.lines().nth(1).unwrap() >= "1");
    guest.remove("pause").await.unwrap();
}

#[tokio::test]
async fn a_pod_with_a_user_namespace_can_be_joined() {
    let guest = guest_or_skip!();
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    let bundle = Bundle::new(guest.machine, "upause", &["sleep", "100"]).with(|spec| {
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map.clone();
    });
    let pid = guest.run_in_background(&bundle).await;
    let bundle = Bundle::shell(
        guest.machine,
        "umember",
        "readlink /proc/self/ns/user; id -u",
    )
    .with(|spec| {
        spec["hostname"] = json!(null);
        spec["linux"]["namespaces"] = json!([
            { "type": "mount" }, { "type": "pid" }, { "type": "cgroup" },
            { "type": "user", "path": format!("/proc/{pid}/ns/user") },
            { "type": "network", "path": format!("/proc/{pid}/ns/net") },
            { "type": "ipc", "path": format!("/proc/{pid}/ns/ipc") },
        ]);
    });
    let member = guest.run(&bundle).await.unwrap();
    let pause = guest
        .exec_shell("upause", "e", "readlink /proc/self/ns/user; id -u")
        .await;
    assert_eq!(member, pause);
    guest.remove("upause").await.unwrap();
}

#[tokio::test]
async fn sysctls_time_and_personality_are_the_containers_own() {
    let guest = guest_or_skip!();
    let command = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname \
        /proc/self/timens_offsets /proc/self/personality | tr -s ' \\t'; \
        [ $(cut -d. -f1 /proc/uptime) -gt 5000 ] && echo late";
    let bundle = Bundle::shell(guest.machine, "sysctl", command).with(|spec| {
        spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        spec["domainname"] = json!("example");
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "time" }));
        spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 7000 } });
        spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
    });
    let result = guest.run(&bundle).await.unwrap();
    assert_eq!(
        result.stdout,
        "1\nexample\nmonotonic 0 0\nboottime 7000 0\n00000008\nlate\n"
    );
}

#[tokio::test]
async fn scheduling_is_set() {
    let guest = guest_or_skip!();
    let command = "cut -d' ' -f19,41 /proc/self/stat";
    let bundle = Bundle::shell(guest.machine, "sched", command).with(|spec| {
        spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    });
    assert_eq!(guest.run(&bundle).await.unwrap(), outcome(0, "5 3\n"));
}
