//! Several containers in one machine, requested by annotations as engines do.

use std::path::Path;

use rvm_tests::command::{eventually, signal};
use rvm_tests::network::Network;
use rvm_tests::pod::{KIND, POD, SANDBOX, member, sandbox, sandbox_with};
use rvm_tests::{Bundle, Rvm, bind};
use serde_json::{Value, json};

/// The program of tests/inside.
const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

#[test]
fn a_member_joins_the_machine_and_its_namespaces() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let processes = rvm.processes().len();
    let script = "hostname; for n in uts ipc net; do readlink /proc/self/ns/$n; done; \
                  ps | grep -c '[s]leep'";
    let shared = rvm.run(&member(&rvm, script, &["net", "ipc", "uts", "pid"]), "one");
    assert_eq!(shared.code, 0, "{}", shared.stderr);
    let shared: Vec<&str> = shared.stdout.lines().collect();
    assert_eq!(shared[0], "pod");
    assert_eq!(shared[4], "1", "the pod's: {shared:?}");
    let other = rvm.run(&member(&rvm, script, &["net"]), "two");
    let other: Vec<&str> = other.stdout.lines().collect();
    assert_ne!(
        other[1..3],
        shared[1..3],
        "no namespace but the network is shared"
    );
    assert_eq!(other[3..], [shared[3], "0"]);
    assert_eq!(
        rvm.processes().len(),
        processes,
        "no other machine was made"
    );
    rvm.ok(&["delete", "--force", "pod"]);
}

/// What the machine's process sees of the host's mounts, which it has copies of. A machine that was
/// taken over writes to no volume that a later container has for reading.
#[test]
fn a_read_only_volume_of_a_member_is_read_only_in_the_jail_too() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let [read, written] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let bundle = member(&rvm, "sleep 1000", POD)
        .mount(bind(read.path(), "/read", &["rbind", "ro"]))
        .mount(bind(written.path(), "/written", &["rbind"]));
    rvm.create(&bundle, "member");
    let is_vmm = |pid: &i32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|path| path.ends_with("rvm-vmm"))
    };
    let tables = rvm.processes().into_iter().filter(is_vmm);
    let tables = tables.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")));
    let lines: Vec<String> = tables
        .flat_map(|table| {
            table
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    // proc_pid_mountinfo(5): the fourth field is the source, the sixth has the mount's options.
    let options = |source: &Path| -> Vec<String> {
        let of_source = lines.iter().filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            // From the root of its file system on.
            let name = source.file_name().unwrap().to_str().unwrap();
            fields[3].ends_with(name).then(|| fields[5].to_owned())
        });
        of_source.collect()
    };
    let (read, written) = (options(read.path()), options(written.path()));
    let is_read_only = |options: &String| options.split(',').any(|option| option == "ro");
    assert!(
        !read.is_empty() && read.iter().all(is_read_only),
        "{read:?}"
    );
    assert!(
        written.iter().any(|options| !is_read_only(options)),
        "{written:?}"
    );
    rvm.ok(&["delete", "--force", "member"]);
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn members_come_and_go_and_leave_nothing_in_the_machine() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let mounts = rvm_tests::command::mentions("/proc/self/mountinfo", &rvm.root());
    let volume = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let script = format!("echo {round} > /data/round; exit {round}");
        let bundle = member(&rvm, &script, POD).with(|config| {
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/data", "type": "bind", "options": ["bind"],
                "source": volume.path(),
            }));
        });
        let finished = rvm.run(&bundle, "member");
        assert_eq!(finished.code, round, "{}", finished.stderr);
        let text = std::fs::read_to_string(volume.path().join("round")).unwrap();
        assert_eq!(text, format!("{round}\n"), "{}", finished.stderr);
        assert_eq!(
            rvm_tests::command::mentions("/proc/self/mountinfo", &rvm.root()),
            mounts
        );
    }
    let bundle = member(&rvm, "sleep 1000", POD);
    rvm.create(&bundle, "killed");
    rvm.ok(&["start", "killed"]);
    let monitor = rvm.state("killed")["pid"].as_i64().unwrap();
    signal(monitor as i32, libc::SIGKILL);
    rvm.wait_for_status("killed", "stopped");
    rvm.ok(&["delete", "killed"]);
    let left = rvm.run(&member(&rvm, "ps", &["net", "pid"]), "look");
    assert_eq!(left.stdout.matches("sleep").count(), 1, "{}", left.stdout);
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn a_member_that_was_refused_can_be_made_again_at_once() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let empty = rvm.path("empty.img");
    std::fs::File::create(&empty)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    for _ in 0..2 {
        let disk = json!({ "destination": "/data", "type": "ext4", "source": empty });
        let refused = rvm.run(&member(&rvm, "true", POD).mount(disk), "member");
        let reason = "cannot mount the file system";
        assert!(refused.stderr.contains(reason), "{}", refused.stderr);
    }
    let made = rvm.run(&member(&rvm, "echo made", POD), "member");
    assert_eq!(made.stdout, "made\n", "{}", made.stderr);
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn a_socket_in_a_volume_leads_from_one_member_to_another() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let volume = tempfile::tempdir().unwrap();
    let with_volume = |script: &str| {
        member(&rvm, script, POD)
            .mount(bind(volume.path(), "/data", &["bind"]))
            .mount(bind(Path::new(INSIDE), "/inside", &["bind"]))
    };
    let bundle = with_volume("/inside listen /data/socket");
    rvm.create(&bundle, "server");
    rvm.ok(&["start", "server"]);
    // The socket exists before anybody listens.
    let script = "for n in $(seq 100); do \
                      /inside connect /data/socket 2>/tmp/why && exit; sleep 0.1; \
                  done; cat /tmp/why >&2";
    let seen = rvm.run(&with_volume(script), "client");
    assert_eq!(seen.stdout, "hello\n", "{}", seen.stderr);
    rvm.ok(&["delete", "--force", "server"]);
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn members_end_with_their_machine() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let bundle = member(&rvm, "sleep 1000", POD);
    rvm.create(&bundle, "member");
    rvm.ok(&["start", "member"]);
    let monitor = rvm.state("pod")["pid"].as_i64().unwrap();
    signal(monitor as i32, libc::SIGKILL);
    rvm.wait_for_status("member", "stopped");
    rvm.ok(&["delete", "member"]);
    rvm.ok(&["delete", "pod"]);
}

#[test]
fn a_machine_ends_with_its_sandboxs_container() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let bundle = member(&rvm, "sleep 1000", POD);
    rvm.create(&bundle, "member");
    rvm.ok(&["kill", "pod", "KILL"]);
    rvm.wait_for_status("pod", "stopped");
    rvm.wait_for_status("member", "stopped");
    eventually("no process is left", || rvm.processes().is_empty());
    rvm.ok(&["delete", "pod"]);
    rvm.ok(&["delete", "member"]);
}

#[test]
fn a_pods_machine_shrinks_and_grows_with_the_limits_of_its_containers() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return println!("skipped: the host has one CPU");
    }
    let rvm = Rvm::new();
    // Of the pod's memory 100 MiB are for a container that never comes.
    let _pod = sandbox_with(
        &rvm,
        &[
            ("io.kubernetes.cri.sandbox-memory", "314572800"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "200000"),
            ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
        ],
    );
    let member = member(&rvm, "sleep 1000", POD).with(|config| {
        let resources = &mut config["linux"]["resources"];
        resources["memory"] = json!({ "limit": 200 << 20 });
        resources["cpu"] = json!({ "quota": 200_000, "period": 100_000 });
    });
    rvm.create(&member, "one");
    rvm.ok(&["start", "one"]);
    let size = || {
        // By sysinfo(2), which knows the machine's memory; /proc/meminfo is the container's.
        let script = "busybox free -m | awk '/^Mem:/ { print $2 }'; nproc";
        let text = rvm.ok(&["exec", "one", "sh", "-c", script]);
        let numbers: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
        (numbers[0], numbers[1])
    };
    let (memory, cpus) = size();
    assert_eq!(cpus, 2);
    for (limit, quota, less, cpus) in [
        ("100m", "100000", 100, 1),
        ("150m", "100000", 50, 1),
        ("200m", "200000", 0, 2),
    ] {
        rvm.ok(&["update", "--memory", limit, "--cpu-quota", quota, "one"]);
        let now = size();
        // The guest's own share of memory becomes less, too.
        let found = memory - now.0;
        assert!(
            (less..=less + less / 8 + 2).contains(&found),
            "{limit}: {found} MiB less"
        );
        assert_eq!(now.1, cpus, "{quota}");
    }
    rvm.ok(&["delete", "--force", "one"]);
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn what_is_no_pod_is_refused_by_name() {
    let rvm = Rvm::new();
    let no_pod = Bundle::shell("true").with(|config| {
        config["annotations"] = json!({ KIND: "container", SANDBOX: "nothing" });
    });
    let refused = rvm.run(&no_pod, "box");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("nothing"), "{}", refused.stderr);

    let _pod = sandbox(&rvm);
    let foreign = member(&rvm, "true", POD).with(|config: &mut Value| {
        config["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/ipc");
    });
    let refused = rvm.run(&foreign, "box");
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("/proc/1/ns/ipc"),
        "{}",
        refused.stderr
    );
    rvm.ok(&["delete", "--force", "pod"]);
}

/// A container of a pod as CRI-O configures it: with CRI-O's annotations, and with namespaces that
/// it pinned before the first container.
fn by_cri_o(kind: &str, script: &str, network: &Network) -> Bundle {
    Bundle::shell(script).with(|config| {
        config["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": kind,
            "io.kubernetes.cri-o.SandboxID": "pod",
            "io.kubernetes.cri-o.PodLinuxOverhead": "null",
            "io.kubernetes.cri-o.PodLinuxResources": r#"{"cpu_period":100000,"cpu_quota":50000,
                "cpu_shares":512,"memory_limit_in_bytes":134217728}"#,
        });
        if kind == "container" {
            config.as_object_mut().unwrap().remove("hostname");
        }
        config["linux"]["namespaces"] = json!([
            { "type": "pid" }, { "type": "mount" },
            { "type": "network", "path": network.path() },
            { "type": "ipc", "path": "/var/run/ipcns/pod" },
            { "type": "uts", "path": "/var/run/utsns/pod" },
        ]);
    })
}

#[test]
fn a_pod_of_cri_os_has_the_size_of_its_containers_and_needs_its_first() {
    let rvm = Rvm::new();
    let network = Network::new();
    let script = "hostname; nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let member = by_cri_o("container", script, &network);
    let alone = rvm.run(&member, "one");
    assert_eq!(alone.code, 1);
    for part in ["there is no sandbox pod", "drop_infra_ctr = false"] {
        assert!(alone.stderr.contains(part), "{}", alone.stderr);
    }
    let first = by_cri_o("sandbox", "sleep 1000", &network);
    rvm.create(&first, "pod");
    rvm.ok(&["start", "pod"]);
    let run = rvm.run(&member, "one");
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[..2], ["box", "1"], "{run:?}");
    let memory: u64 = lines[2].parse().unwrap();
    assert!((120..180).contains(&memory), "{memory} MiB");
    rvm.ok(&["delete", "--force", "pod"]);
}

/// MemTotal in MiB and the length of /proc/meminfo.
const MEMINFO: &str = "awk '/MemTotal/ { print $2 / 1024 }' /proc/meminfo; wc -l </proc/meminfo";

#[test]
fn each_container_of_a_pod_sees_its_own_memory() {
    let rvm = Rvm::new();
    let _pod = sandbox(&rvm);
    let limited = |script: &str, mib: u64| {
        member(&rvm, script, POD).with(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": mib << 20 });
        })
    };
    let waits = limited("sleep 1000", 80);
    rvm.create(&waits, "waits");
    rvm.ok(&["start", "waits"]);
    let one = rvm.run(&limited(MEMINFO, 50), "one");
    let lines: Vec<&str> = one.stdout.lines().collect();
    assert_eq!(lines[0], "50", "{one:?}");
    let shell = |script: &str| rvm.ok(&["exec", "waits", "sh", "-c", script]);
    // As many lines as the kernel's own.
    assert_eq!(shell(MEMINFO), format!("80\n{}\n", lines[1]));
    rvm.ok(&["update", "--memory", "60m", "waits"]);
    assert_eq!(shell(MEMINFO), format!("60\n{}\n", lines[1]));

    // Its use, of the moment.
    let uses = "grep Shmem: /proc/meminfo; dd if=/dev/zero of=/dev/shm/f bs=1M count=9 2>/dev/null
                sleep 0.1; grep Shmem: /proc/meminfo";
    let lines = shell(uses);
    let kib = |line: &str| {
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let shmem: Vec<u64> = lines.lines().map(kib).collect();
    assert_eq!(shmem[1] - shmem[0], 9 << 10, "{lines}");
    let write = rvm.call(&["exec", "waits", "sh", "-c", "echo >/proc/meminfo"]);
    assert_ne!(write.code, 0, "{write:?}");
    for id in ["waits", "pod"] {
        rvm.ok(&["delete", "--force", id]);
    }
}

#[test]
fn meminfo_can_be_masked_and_is_the_kernels_in_a_privileged_container() {
    let rvm = Rvm::new();
    let bundle = |paths, capability| {
        Bundle::shell("cat /proc/meminfo; stat -f -c %T /proc/meminfo").with(|config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 50 << 20 });
            config["linux"]["maskedPaths"] = paths;
            config["process"]["capabilities"]["bounding"] = json!([capability]);
            config["process"]["capabilities"]["permitted"] = json!([]);
            config["process"]["capabilities"]["effective"] = json!([]);
        })
    };
    let masked = bundle(json!(["/proc/meminfo"]), "CAP_SYS_ADMIN");
    let masked = rvm.run(&masked, "one");
    assert_eq!(masked.stdout, "tmpfs\n", "{masked:?}");
    let privileged = rvm.run(&bundle(json!([]), "CAP_SYS_ADMIN"), "two");
    assert!(privileged.stdout.ends_with("\nproc\n"), "{privileged:?}");
    let bare = rvm.run(&bundle(json!([]), "CAP_KILL"), "three");
    assert!(bare.stdout.ends_with("\ntmpfs\n"), "{bare:?}");
}
