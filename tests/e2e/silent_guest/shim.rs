//! The same under containerd, whose calls a client makes here.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExit;
use protobuf::Message;
use rvm_tests::Bundle;
use rvm_tests::command::{eventually, signal};
use rvm_tests::network::Network;
use rvm_tests::shim::{Shim, limit};
use serde_json::json;

use super::{KIND, SANDBOX, in_time, silence};

fn start(shim: &Shim, id: &str, bundle: &Bundle) -> u32 {
    let create = api::CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.write().display().to_string(),
        ..Default::default()
    };
    shim.ok(shim.tasks.create(limit(), &create));
    let start = api::StartRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.start(limit(), &start)).pid
}

fn kill(shim: &Shim, id: &str) {
    let request = api::KillRequest {
        id: id.to_owned(),
        signal: 9,
        ..Default::default()
    };
    shim.ok(shim.tasks.kill(limit(), &request));
}

/// Waits for a container; returns its exit code.
fn wait(shim: &Shim, id: &str) -> u32 {
    let request = api::WaitRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.wait(limit(), &request)).exit_status
}

fn delete(shim: &Shim, id: &str) {
    let request = api::DeleteRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    shim.ok(shim.tasks.delete(limit(), &request));
}

fn shut_down(shim: &Shim) {
    let request = api::ShutdownRequest::default();
    shim.ok(shim.tasks.shutdown(limit(), &request));
}

/// The containers whose exits were told, with their exit codes.
fn exits(shim: &Shim) -> Vec<(String, u32)> {
    let told = shim.events().into_iter();
    let exits = told.filter(|envelope| envelope.topic == "/tasks/exit");
    exits
        .map(|envelope| TaskExit::parse_from_bytes(&envelope.event.value).unwrap())
        .map(|exit| (exit.container_id, exit.exit_status))
        .collect()
}

#[test]
fn containerd_kills_and_deletes_a_container_whose_guest_is_silent() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let shim = Shim::start("box", bundle.write());
    start(&shim, "box", &bundle);
    silence(shim.world());
    in_time("Kill and Wait", || {
        kill(&shim, "box");
        assert_eq!(wait(&shim, "box"), 137);
    });
    eventually("the exit is told", || {
        exits(&shim) == [("box".to_owned(), 137)]
    });
    in_time("Delete", || delete(&shim, "box"));
    shut_down(&shim);
}

/// A pod's first container, which has this network, and the shim that serves it.
fn pod(network: &Network) -> (Shim, Bundle) {
    let bundle = Bundle::new(&["sleep", "1000"]).with(|config| {
        config["annotations"] = json!({ KIND: "sandbox", SANDBOX: "pod" });
        enter(config, network);
    });
    let shim = Shim::start("pod", bundle.write());
    start(&shim, "pod", &bundle);
    (shim, bundle)
}

fn member(network: &Network) -> Bundle {
    Bundle::new(&["sleep", "2000"]).with(|config| {
        config["annotations"] = json!({ KIND: "container", SANDBOX: "pod" });
        config.as_object_mut().unwrap().remove("hostname");
        enter(config, network);
    })
}

fn enter(config: &mut serde_json::Value, network: &Network) {
    for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = json!(network.path());
        }
    }
}

#[test]
fn a_container_that_a_silent_pod_does_not_end_costs_the_pod() {
    let network = Network::new();
    let (shim, _bundle) = pod(&network);
    let member = member(&network);
    start(&shim, "member", &member);
    silence(shim.world());
    in_time("Kill and Wait", || {
        kill(&shim, "member");
        assert_eq!(wait(&shim, "member"), 137);
        assert_eq!(wait(&shim, "pod"), 137);
    });
    eventually("both exits are told", || exits(&shim).len() == 2);
    in_time("Delete", || {
        delete(&shim, "member");
        delete(&shim, "pod");
    });
    shut_down(&shim);
}

/// `rvm` with the state of the shim's containers.
fn rvm(shim: &Shim, args: &[&str]) -> String {
    let mut command = std::process::Command::new(rvm_tests::dist().join("bin/rvm"));
    command.arg("--root").arg(shim.state_root()).args(args);
    let finished = rvm_tests::command::finish(command);
    assert_eq!(finished.code, 0, "rvm {args:?}: {}", finished.stderr);
    finished.stdout
}

/// The cgroup of a process below that of the tests' world.
fn cgroup(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[test]
fn a_container_of_a_pod_has_a_process_and_ends_alone_with_it() {
    let network = Network::new();
    let (shim, _bundle) = pod(&network);
    let member = member(&network);
    let pid = start(&shim, "member", &member);
    let alive = || Path::new(&format!("/proc/{pid}")).exists();
    let tgid = format!("Tgid:\t{pid}\n");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains(&tgid),
        "it is a process, not a thread: {status}"
    );
    let name = member.path().file_name().unwrap().to_str().unwrap();
    assert!(cgroup(pid).contains(name), "{}", cgroup(pid));

    signal(pid.cast_signed(), libc::SIGKILL);
    assert_eq!(wait(&shim, "member"), 137);
    assert!(!alive());
    delete(&shim, "member");

    let pid = start(&shim, "member", &member);
    in_time("rvm delete --force", || {
        rvm(&shim, &["delete", "--force", "member"])
    });
    assert_eq!(wait(&shim, "member"), 137);
    eventually("its process has ended", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    delete(&shim, "member");

    assert!(rvm(&shim, &["list"]).contains("running"), "the pod stays");
    kill(&shim, "pod");
    assert_eq!(wait(&shim, "pod"), 137);
    delete(&shim, "pod");
    shut_down(&shim);
}

#[test]
fn a_signal_to_a_containers_pid_reaches_the_container() {
    let bundle = Bundle::shell("trap 'exit 3' TERM; touch /tmp/ready; while :; do sleep 0.1; done");
    let shim = Shim::start("box", bundle.write());
    let pid = start(&shim, "box", &bundle);
    eventually("the program runs", || bundle.rootfs("tmp/ready").exists());
    signal(pid.cast_signed(), libc::SIGTERM);
    assert_eq!(wait(&shim, "box"), 3);
    delete(&shim, "box");
    shut_down(&shim);
}
