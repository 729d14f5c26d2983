//! Verbs for a running container, and verbs without one.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use rvm_tests::command::{self, eventually, finish};
use rvm_tests::{Bundle, Rvm, bind, is_in_memory};
use serde_json::{Value, json};

/// Starts a container that runs a shell command.
fn running(rvm: &Rvm, script: &str) -> Bundle {
    let bundle = Bundle::shell(script).with(|config| {
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

fn failure(rvm: &Rvm, args: &[&str]) -> String {
    let finished = rvm.call(args);
    assert_eq!(finished.code, 1, "{args:?}");
    finished.stderr
}

#[test]
fn a_paused_container_stands_still_and_can_be_killed() {
    let rvm = Rvm::new();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done";
    let bundle = running(&rvm, script);
    let count = || std::fs::read_to_string(bundle.rootfs("tmp/count")).unwrap_or_default();
    eventually("it counts", || !count().is_empty());
    assert!(failure(&rvm, &["resume", "box"]).contains("container not paused"));

    rvm.ok(&["pause", "box"]);
    assert_eq!(rvm.status("box"), "paused");
    assert!(failure(&rvm, &["pause", "box"]).contains("container not running"));
    let before = count();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(count(), before);
    let exec = rvm.call(&["exec", "box", "true"]);
    assert_eq!(exec.code, 255);
    assert!(exec.stderr.contains("cannot exec in a paused container"));
    let patient = rvm.command(&["exec", "--ignore-paused", "box", "echo", "at last"]);
    let patient = std::thread::spawn(move || finish(patient));

    rvm.ok(&["resume", "box"]);
    assert_eq!(rvm.status("box"), "running");
    eventually("it counts again", || count() != before);
    assert_eq!(patient.join().unwrap().stdout, "at last\n");

    rvm.ok(&["pause", "box"]);
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    assert!(failure(&rvm, &["pause", "box"]).contains("container not running"));
    end(&rvm);

    let _bundle = running(&rvm, "sleep 1000");
    rvm.ok(&["pause", "box"]);
    assert!(failure(&rvm, &["delete", "box"]).contains("not stopped: paused"));
    end(&rvm);
}

#[test]
fn ps_lists_the_guests_processes_and_for_engines_the_hosts() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm, "sleep 1000 & exec sleep 2000");
    let table = || rvm.ok(&["ps", "box"]);
    eventually("both run", || table().lines().count() == 3);
    let table = table();
    assert!(table.starts_with("UID          PID    PPID  C STIME TTY          TIME CMD\n"));
    assert!(table.contains("root "), "{table}");
    assert!(table.contains(" sleep 2000\n"), "{table}");
    assert_eq!(rvm.ok(&["ps", "box", "-ef"]).lines().count(), 3);
    let chosen = rvm.ok(&["ps", "box", "-eo", "args=,ppid="]);
    assert!(chosen.starts_with("sleep "), "{chosen}");
    assert!(failure(&rvm, &["ps", "box", "aux"]).contains("\"aux\" is not supported"));
    let list: Vec<i32> = serde_json::from_str(&rvm.ok(&["ps", "-f", "json", "box"])).unwrap();
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let names: Vec<String> = list.iter().map(name).collect();
    assert!(names.contains(&"rvm\n".to_owned()), "{names:?}");
    assert!(names.len() > 1, "the machine is one of them: {names:?}");
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    assert_eq!(rvm.ok(&["ps", "-f", "json", "box"]), "null\n");
    end(&rvm);
}

fn stats(rvm: &Rvm) -> Value {
    let line = rvm.ok(&["events", "--stats", "box"]);
    assert_eq!(line.lines().count(), 1);
    serde_json::from_str(&line).unwrap()
}

#[test]
fn block_io_is_what_the_machine_moves_to_and_from_the_hosts_storage() {
    const SIZE: u64 = 8 << 20;
    let rvm = Rvm::new();
    let dir = tempfile::tempdir().unwrap();
    if is_in_memory(dir.path()) {
        return println!("skipped: {} is in memory", dir.path().display());
    }
    // A file that is not in the page cache.
    let file = std::fs::File::create(dir.path().join("old")).unwrap();
    (&file).write_all(&vec![1; SIZE as usize]).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();

    let bundle = Bundle::new(&["sleep", "1000"]).mount(bind(dir.path(), "/v", &["rbind"]));
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let moved = |op: &str| {
        let stats = stats(&rvm);
        let list = stats["data"]["blkio"]["ioServiceBytesRecursive"].as_array();
        let entry = list.unwrap().iter().find(|entry| entry["op"] == op);
        entry.unwrap()["value"].as_u64().unwrap_or(0)
    };
    let before = ["Read", "Write"].map(moved);
    rvm.ok(&["exec", "box", "cat", "/v/old"]);
    let script = "dd if=/dev/zero of=/v/new bs=1M count=8 conv=fsync 2>&1";
    rvm.ok(&["exec", "box", "sh", "-c", script]);
    let after = ["Read", "Write"].map(moved);
    for (before, after) in before.into_iter().zip(after) {
        assert!(
            (SIZE..2 * SIZE).contains(&(after - before)),
            "{before} {after}"
        );
    }
    end(&rvm);
}

#[test]
fn update_changes_what_holds_in_the_guest() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm, "sleep 1000");
    let limits = || {
        let script = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max";
        rvm.ok(&["exec", "box", "sh", "-c", script])
    };
    let options = [
        "--memory",
        "64m",
        "--cpu-quota",
        "50000",
        "--cpu-share",
        "2",
    ];
    rvm.ok(&[&["update"], &options[..], &["--pids-limit", "90", "box"]].concat());
    assert_eq!(limits(), "67108864\n50000 100000\n1\n90\n");
    // Earlier changes stay: the period goes with the old quota.
    rvm.ok(&["update", "--cpu-period", "200000", "box"]);
    assert_eq!(limits(), "67108864\n50000 200000\n1\n90\n");

    let mut from_stdin = rvm.command(&["update", "-r", "-", "box"]);
    let mut child = from_stdin.stdin(Stdio::piped()).spawn().unwrap();
    let resources = json!({ "memory": { "limit": 50 << 20 }, "pids": { "limit": -1 } });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(resources.to_string().as_bytes()).unwrap();
    drop(stdin);
    assert!(command::wait(child).status.success());
    assert_eq!(limits(), "52428800\n50000 200000\n1\nmax\n");
    assert_eq!(stats(&rvm)["data"]["memory"]["usage"]["limit"], 50 << 20);

    let file = rvm.path("limits.json");
    std::fs::write(
        &file,
        r#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#,
    )
    .unwrap();
    let refused = failure(&rvm, &["update", "-r", file.to_str().unwrap(), "box"]);
    assert!(refused.contains("4096 bytes"), "{refused}");
    assert!(failure(&rvm, &["update", "--cpu-rt-runtime", "1", "box"]).contains("realtimeRuntime"));
    assert!(failure(&rvm, &["update", "--memory", "much", "box"]).contains("--memory"));
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    assert!(failure(&rvm, &["update", "--memory", "1g", "box"]).contains("not running"));
    end(&rvm);
}

#[test]
fn events_tell_of_use_of_kills_for_memory_and_end_with_the_container() {
    let rvm = Rvm::new();
    // `tail` keeps an endless line, and grows until it is killed.
    let script = "while :; do [ -e /tmp/go ] && tail /dev/zero; sleep 0.1; done";
    let bundle = Bundle::shell(script).with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
        config["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    });
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let once = stats(&rvm);
    assert_eq!(
        (&once["type"], &once["id"]),
        (&json!("stats"), &json!("box"))
    );
    let data = &once["data"];
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(data["pids"]["limit"], 50);

    let mut events = rvm.command(&["events", "--interval", "200ms", "box"]);
    let mut child = events.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut kinds = lines.map(|line| {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        event["type"].as_str().unwrap().to_owned()
    });
    assert_eq!(kinds.next().as_deref(), Some("stats"));
    std::fs::write(bundle.rootfs("tmp/go"), "").unwrap();
    assert!(kinds.by_ref().take(600).any(|kind| kind == "oom"));
    rvm.ok(&["kill", "box", "KILL"]);
    assert!(kinds.all(|kind| kind == "oom" || kind == "stats"));
    assert!(command::wait(child).status.success());
    rvm.wait_for_status("box", "stopped");
    assert!(failure(&rvm, &["events", "box"]).contains("is not running"));
    end(&rvm);
}

#[test]
fn lists_and_states_have_runcs_shapes() {
    let rvm = Rvm::new();
    assert_eq!(rvm.ok(&["list", "--format", "json"]), "null\n");
    let heading = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
    assert_eq!(rvm.ok(&["list"]), heading);
    let bundle = running(&rvm, "sleep 1000");
    let state = rvm.state("box");
    let list: Value = serde_json::from_str(&rvm.ok(&["list", "-f", "json"])).unwrap();
    assert_eq!(list, json!([state]));
    let keys: Vec<&String> = state.as_object().unwrap().keys().collect();
    let expected = [
        "bundle",
        "created",
        "id",
        "ociVersion",
        "owner",
        "pid",
        "rootfs",
        "status",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        state["rootfs"],
        bundle.rootfs("").canonicalize().unwrap().to_str().unwrap()
    );
    end(&rvm);
}

#[test]
fn kill_reaches_all_processes_and_forgives_a_stopped_container_then() {
    let rvm = Rvm::new();
    let script = "trap 'echo first > /tmp/first; exit 3' USR1; \
                  sh -c \"trap 'echo second > /tmp/second' USR1; while :; do sleep 0.1; done\" & \
                  while :; do sleep 0.1; done";
    let bundle = running(&rvm, script);
    // Both must have set their traps.
    std::thread::sleep(Duration::from_secs(1));
    rvm.ok(&["kill", "--all", "box", "USR1"]);
    rvm.wait_for_status("box", "stopped");
    assert!(bundle.rootfs("tmp/first").exists());
    assert!(failure(&rvm, &["kill", "box", "KILL"]).contains("container not running"));
    rvm.ok(&["kill", "-a", "box", "KILL"]);
    assert!(failure(&rvm, &["kill", "box", "NOSUCH"]).contains("unknown signal"));
    end(&rvm);
}

#[test]
fn what_needs_no_container_says_what_it_has_to_say() {
    let rvm = Rvm::new();
    let dir = rvm.path("bundle");
    std::fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    assert!(failure(&rvm, &["spec", "--rootless", "-b", dir]).contains("not supported"));
    rvm.ok(&["spec", "--bundle", dir]);
    let text = std::fs::read_to_string(format!("{dir}/config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(failure(&rvm, &["spec", "-b", dir]).contains("exists"));

    let features: Value = serde_json::from_str(&rvm.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);

    let overhead = rvm.ok(&["overhead"]);
    assert!(
        overhead.contains("\noverhead:\n  podFixed:\n    memory: "),
        "{overhead}"
    );
    assert!(failure(&rvm, &["overhead", "--memory", "much"]).contains("--memory"));

    for option in ["--pre-dump", "--lazy-pages"] {
        let refused = failure(&rvm, &["checkpoint", option, "box"]);
        let words = format!("{option} is not supported");
        assert!(refused.contains(&words), "{refused}");
    }
    // One dash, as go-runc writes it.
    let refused = failure(
        &rvm,
        &["restore", "-no-subreaper", "--image-path", "/x", "box"],
    );
    assert!(refused.contains("no checkpoint in /x"), "{refused}");
    for (args, code) in [
        (&["--help"][..], 0),
        (&["exec", "--help"], 0),
        (&["fly"], 1),
    ] {
        assert_eq!(rvm.call(args).code, code, "{args:?}");
    }
    let version = rvm.ok(&["--version"]);
    assert!(version.starts_with("rvm version "), "{version}");
}

#[test]
fn every_verb_has_a_manual_page_and_completes() {
    let share = rvm_tests::dist().join("share");
    let help = Rvm::new().ok(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap();
    let verbs: Vec<&str> = list
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(
        verbs.contains(&"exec") && !verbs.contains(&"monitor"),
        "{verbs:?}"
    );
    let bash = share.join("bash-completion/completions/rvm");
    let completions = std::fs::read_to_string(&bash).unwrap();
    for verb in verbs {
        let page = share.join(format!("man/man8/rvm-{verb}.8"));
        assert!(page.exists(), "{}", page.display());
        assert!(
            completions.contains(&format!("rvm__subcmd__{verb}")),
            "{verb}"
        );
    }
    assert!(!completions.contains("monitor"), "nobody types that");
    let checked = std::process::Command::new("bash")
        .arg("-n")
        .arg(bash)
        .status();
    assert!(checked.unwrap().success());
    assert!(share.join("zsh/site-functions/_rvm").exists());
    assert!(share.join("fish/vendor_completions.d/rvm.fish").exists());
}

/// How often a container is created and deleted. Full runs set 100.
fn cycles() -> usize {
    let text = std::env::var("RVM_TEST_CYCLES");
    text.ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

#[test]
fn cycles_of_create_start_and_delete_leave_nothing() {
    let rvm = Rvm::new();
    for number in 0..cycles() {
        let bundle = Bundle::shell("echo out; exit 3");
        rvm.create(&bundle, "box");
        rvm.ok(&["start", "box"]);
        if number % 2 == 0 {
            rvm.wait_for_status("box", "stopped");
            rvm.ok(&["delete", "box"]);
        } else {
            end(&rvm);
        }
        rvm.assert_nothing_left();
    }
}
