//! Containers that the previous release has started, handled by the binaries of this one.

use rvm_tests::command::{eventually, signal};
use rvm_tests::upgrade::Installation;
use rvm_tests::{Bundle, Containerd, Rvm};
use serde_json::json;

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A program that ends with 7 on SIGTERM.
const ENDS_ON_TERM: &str = "trap 'exit 7' TERM; while :; do sleep 0.1; done";

/// A container of a pod, which may be its first.
fn in_pod(kind: &str, script: &str) -> Bundle {
    Bundle::shell(script).with(|config| {
        config["annotations"] = json!({ KIND: kind, SANDBOX: "pod" });
    })
}

fn start(rvm: &Rvm, bundle: &Bundle, id: &str) {
    rvm.create(bundle, id);
    rvm.ok(&["start", id]);
}

fn statuses(rvm: &Rvm) -> Vec<(String, String)> {
    let list: serde_json::Value =
        serde_json::from_str(&rvm.ok(&["list", "--format", "json"])).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let list = list.as_array().unwrap().iter();
    list.map(|state| (text(&state["id"]), text(&state["status"])))
        .collect()
}

#[test]
fn containers_of_the_previous_release_live_on_under_this_one() {
    let Some(installation) = Installation::previous() else {
        return;
    };
    let rvm = Rvm::new().installed_in(installation.dist());
    let bundle = Bundle::shell(ENDS_ON_TERM).with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 128 << 20 });
    });
    let short = Bundle::new(&["true"]);
    start(&rvm, &bundle, "runs");
    start(&rvm, &short, "stopped");
    rvm.wait_for_status("stopped", "stopped");
    let waiting = Bundle::new(&["sleep", "1000"]);
    rvm.create(&waiting, "waits");
    installation.upgrade();

    let expected = [
        ("runs", "running"),
        ("stopped", "stopped"),
        ("waits", "created"),
    ];
    let expected = expected.map(|(id, status)| (id.to_owned(), status.to_owned()));
    assert_eq!(statuses(&rvm), expected);

    // The machines' owners are processes of the previous release.
    rvm.ok(&["start", "waits"]);
    assert_eq!(rvm.status("waits"), "running");
    let again = rvm.call(&["start", "waits"]);
    assert!(again.stderr.contains("already running"), "{}", again.stderr);
    rvm.ok(&["update", "--pids-limit", "50", "runs"]);
    let refused = rvm.call(&["update", "--memory", "1g", "runs"]);
    assert!(
        refused.stderr.contains("asks for a machine of"),
        "{}",
        refused.stderr
    );
    let said = rvm.call(&["exec", "runs", "sh", "-c", "echo said; exit 3"]);
    assert_eq!((said.code, &*said.stdout), (3, "said\n"), "{}", said.stderr);
    rvm.ok(&["pause", "runs"]);
    rvm.ok(&["resume", "runs"]);
    assert!(rvm.ok(&["ps", "runs"]).contains("sleep 0.1"));

    rvm.ok(&["kill", "runs", "TERM"]);
    rvm.wait_for_status("runs", "stopped");
    rvm.ok(&["delete", "runs"]);
    rvm.ok(&["delete", "stopped"]);
    rvm.ok(&["delete", "--force", "waits"]);
    assert_eq!(rvm.ok(&["list", "--quiet"]), "");

    // Another, of this release, by the id of one that was.
    let finished = rvm.run(&short, "runs");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
}

#[test]
fn a_pod_of_the_previous_release_takes_members_of_this_one() {
    let Some(installation) = Installation::previous() else {
        return;
    };
    let rvm = Rvm::new().installed_in(installation.dist());
    let first = in_pod("sandbox", "sleep 1000");
    start(&rvm, &first, "pod");
    let member = in_pod("container", ENDS_ON_TERM);
    start(&rvm, &member, "old");
    installation.upgrade();

    let said = rvm.call(&["exec", "old", "hostname"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let newer = in_pod("container", ENDS_ON_TERM);
    start(&rvm, &newer, "new");
    let short = in_pod("container", "exit 5");
    let finished = rvm.run(&short, "short");
    assert_eq!(finished.code, 5, "{}", finished.stderr);
    for member in ["old", "new"] {
        rvm.ok(&["kill", member, "TERM"]);
        rvm.wait_for_status(member, "stopped");
        rvm.ok(&["delete", member]);
    }
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn nothing_is_left_of_containers_whose_monitors_of_the_previous_release_are_killed() {
    let Some(installation) = Installation::previous() else {
        return;
    };
    let rvm = Rvm::new().installed_in(installation.dist());
    let bundle = Bundle::new(&["sleep", "1000"]);
    start(&rvm, &bundle, "box");
    installation.upgrade();
    let monitor = rvm.state("box")["pid"].as_i64().unwrap();
    signal(monitor as i32, libc::SIGKILL);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
}

#[test]
fn a_shim_of_the_previous_release_goes_on_and_is_cleaned_up_after_by_this_one() {
    let Some(installation) = Installation::previous() else {
        return;
    };
    let world = Rvm::new().installed_in(installation.dist());
    let containerd = Containerd::with_image(world);
    containerd.start_container(&[], "goes-on", ENDS_ON_TERM);
    containerd.start_container(&[], "dies", "sleep 1000");
    let shims = containerd.shims();
    installation.upgrade();
    containerd.kill();
    containerd.start();

    let said = containerd.exec("goes-on", "one", "echo said; exit 3");
    assert_eq!((said.code, &*said.stdout), (3, "said\n"), "{}", said.stderr);
    containerd.start_container(&[], "new", "sleep 1000");
    assert_eq!(containerd.shims().len(), shims.len() + 1);
    containerd.ok(&["task", "kill", "--signal", "TERM", "goes-on"]);
    containerd.wait_for_status("goes-on", "STOPPED");
    containerd.remove("goes-on");

    // containerd has the shim of this release clean up after the dead one.
    let (_, pid) = containerd.task("dies").unwrap();
    let shim = shims.iter().find(|shim| has_thread(**shim, pid)).unwrap();
    signal(*shim, libc::SIGKILL);
    eventually("the task is gone", || {
        containerd
            .task("dies")
            .is_none_or(|(status, _)| status != "RUNNING")
    });
    containerd.remove("dies");
    containerd.remove("new");
}

/// Whether a process has a thread by this number.
fn has_thread(process: i32, thread: i32) -> bool {
    std::path::Path::new(&format!("/proc/{process}/task/{thread}")).exists()
}
