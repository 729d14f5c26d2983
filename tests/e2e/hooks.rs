//! The hooks of config.json, on the host and in the guest.

use std::path::Path;

use rvm_tests::command::{eventually, finish};
use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};

/// A hook on the host that runs a shell command in the bundle.
fn host(command: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", command], "env": ["PATH=/usr/bin:/bin"] })
}

/// A hook whose program is shared with the guest. The bundle in its state is the directory with the
/// root.
fn guest(command: &str) -> Value {
    let command = format!("cd {}/box && {command}", "/run/rvm/shared");
    json!({ "path": "/bin/busybox", "args": ["sh", "-c", command] })
}

/// A hook that runs a program in the container.
fn container(command: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", command] })
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn hooks_run_in_order_and_are_told_the_state() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1000").with(|config| {
        config["annotations"] = json!({ "org.example.key": "value" });
        config["hooks"] = json!({
            "prestart": [host("cat >rootfs/1; echo 1 >>rootfs/log")],
            "createRuntime": [host("cat >rootfs/2; echo 2 >>rootfs/log")],
            "createContainer": [guest("read -r state; echo \"$state\" >rootfs/3; echo 3 >>rootfs/log")],
            "startContainer": [container("cat >/4; echo 4 >>/log")],
            "poststart": [host("cat >rootfs/5; echo 5 >>rootfs/log")],
            "poststop": [host("cat >rootfs/6; echo 6 >>rootfs/log")],
        });
    });
    rvm.create(&bundle, "box");
    let pid = rvm.state("box")["pid"].clone();
    assert_eq!(read(&bundle.rootfs("log")), "1\n2\n3\n");
    rvm.ok(&["start", "box"]);
    assert_eq!(read(&bundle.rootfs("log")), "1\n2\n3\n4\n5\n");
    rvm.ok(&["delete", "--force", "box"]);
    assert_eq!(read(&bundle.rootfs("log")), "1\n2\n3\n4\n5\n6\n");

    let of_host = bundle.path().canonicalize().unwrap();
    for (file, status, pid, dir) in [
        ("1", "creating", pid.clone(), of_host.to_str().unwrap()),
        ("2", "creating", pid.clone(), of_host.to_str().unwrap()),
        ("3", "creating", json!(1), "/run/rvm/shared/box"),
        ("4", "created", json!(1), "/run/rvm/shared/box"),
        ("5", "running", pid, of_host.to_str().unwrap()),
        ("6", "stopped", Value::Null, of_host.to_str().unwrap()),
    ] {
        let state: Value = serde_json::from_str(&read(&bundle.rootfs(file))).unwrap();
        assert_eq!(
            (&state["status"], &state["pid"], &state["bundle"]),
            (&json!(status), &pid, &json!(dir)),
            "hook {file}"
        );
        assert_eq!(state["annotations"]["org.example.key"], "value");
        assert_eq!(
            (&state["id"], &state["ociVersion"]),
            (&json!("box"), &json!("1.0.2"))
        );
    }
}

#[test]
fn hooks_without_an_environment_inherit_one_and_with_an_empty_one_do_not() {
    const POINTS: [&str; 6] = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["true"]).with(|config| {
        config["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
        let hooks = POINTS.map(|point| {
            let hook = |suffix| {
                let mut hook = match point {
                    "createContainer" => guest(&format!("env >rootfs/{point}{suffix}")),
                    "startContainer" => container(&format!("env >/{point}{suffix}")),
                    _ => host(&format!("env >rootfs/{point}{suffix}")),
                };
                hook.as_object_mut().unwrap().remove("env");
                hook
            };
            let mut empty = hook("-empty");
            empty["env"] = json!([]);
            (point.to_owned(), json!([hook(""), empty]))
        });
        config["hooks"] = Value::Object(hooks.into_iter().collect());
    });
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box").env("CALLER", "yes");
    assert_eq!(finish(run).code, 0);
    for point in POINTS {
        let inherited = read(&bundle.rootfs(point));
        let has = |variable| inherited.lines().any(|line| line == variable);
        let in_guest = ["createContainer", "startContainer"].contains(&point);
        assert_eq!(has("ONE=two"), in_guest, "{point}: {inherited}");
        assert_eq!(has("CALLER=yes"), !in_guest, "{point}: {inherited}");
        let empty = read(&bundle.rootfs(&format!("{point}-empty")));
        assert!(
            !empty.contains("ONE=") && !empty.contains("CALLER="),
            "{point}: {empty}"
        );
    }
    assert!(read(&bundle.rootfs("startContainer")).contains("HOME=/\n"));
}

#[test]
fn a_container_whose_start_was_killed_midway_is_told_to_run() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1000").with(|config| {
        config["hooks"] = json!({ "startContainer": [container("touch /begun; sleep 1")] });
    });
    rvm.create(&bundle, "box");
    let mut start = rvm.command(&["start", "box"]).spawn().unwrap();
    eventually("the hook runs", || bundle.rootfs("begun").exists());
    start.kill().unwrap();
    start.wait().unwrap();
    assert_eq!(rvm.status("box"), "created");
    rvm.wait_for_status("box", "running");
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_hook_that_fails_before_the_program_ends_the_container() {
    let rvm = Rvm::new();
    for (moment, hook) in [
        ("prestart", host("echo because >&2; exit 3")),
        ("createRuntime", host("echo because >&2; exit 3")),
        ("createContainer", guest("echo because >&2; exit 3")),
        ("startContainer", container("echo because >&2; exit 3")),
    ] {
        let bundle = Bundle::shell("touch /ran").with(|config| {
            config["hooks"] = json!({ "poststop": [host("touch stopped")] });
            config["hooks"][moment] = json!([hook]);
        });
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.code, 1, "{moment}: {}", finished.stderr);
        let expected = format!("error running {moment} hook #0: exit status 3");
        assert!(finished.stderr.contains(&expected), "{}", finished.stderr);
        assert!(finished.stderr.contains("because"), "{}", finished.stderr);
        assert!(!bundle.rootfs("ran").exists());
        assert!(
            bundle.path().join("stopped").exists(),
            "{moment}: poststop runs"
        );
        rvm.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_fails_later_is_a_warning() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1; exit 5").with(|config| {
        let late = json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 });
        config["hooks"] = json!({
            "poststart": [late, host("touch second")],
            "poststop": [host("exit 1"), host("touch last")],
        });
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 5, "{}", finished.stderr);
    for text in [
        "poststart hook #0: killed after its timeout",
        "poststop hook #0: exit status 1",
    ] {
        assert!(finished.stderr.contains(text), "{}", finished.stderr);
    }
    assert!(bundle.path().join("second").exists() && bundle.path().join("last").exists());
}

#[test]
fn a_poststart_hook_that_fails_ends_a_container_of_version_1_3() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1000").with(|config| {
        config["ociVersion"] = json!("1.3.0");
        config["hooks"] = json!({
            "poststart": [host("echo because >&2; exit 3"), host("touch second")],
            "poststop": [host("touch last")],
        });
    });
    let expected = "error running poststart hook #0: exit status 3";
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.contains(expected), "{}", finished.stderr);
    assert!(
        bundle.path().join("last").exists(),
        "the container is deleted"
    );
    rvm.create(&bundle, "box");
    let started = rvm.call(&["start", "box"]);
    assert_eq!(started.code, 1, "{}", started.stderr);
    assert!(started.stderr.contains(expected), "{}", started.stderr);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
    assert!(!bundle.path().join("second").exists());
}

#[test]
fn a_hook_that_cannot_run_in_the_guest_is_refused_by_name() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("true").with(|config| {
        config["hooks"] = json!({ "createContainer": [{ "path": "/bin/cat" }] });
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 1);
    assert!(
        finished
            .stderr
            .contains("hooks.createContainer[0].path /bin/cat:"),
        "{}",
        finished.stderr
    );
}
