//! Pods of Podman: containers that share a machine.

use std::fs;

use rvm_tests::command::eventually;
use rvm_tests::engine::{Container, IMAGE, Runtime, runtime};

use crate::engine;

/// A pod, removed by force when dropped.
struct Pod(String);

impl Pod {
    fn new(options: &[&str]) -> Self {
        let name = engine().name().name.clone() + "-pod";
        engine().ok(&[&["pod", "create", "--name", &name], options].concat());
        Self(name)
    }

    /// Starts a container in it.
    fn start(&self, args: &[&str]) -> Container<'static> {
        let container = engine().name();
        let run = [
            "run",
            "--detach",
            "--pod",
            &self.0,
            "--name",
            &container.name,
            IMAGE,
        ];
        engine().ok(&[&run[..], args].concat());
        container
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        engine().call(&["pod", "rm", "--force", "--time", "0", &self.0]);
    }
}

/// The running machines.
fn machines() -> usize {
    let processes = engine().world().processes();
    let is_machine = |line: &str| line.contains("/rvm-vmm") || line.contains("qemu-system");
    processes
        .iter()
        .filter(|(_, line)| is_machine(line))
        .count()
}

#[test]
fn the_containers_of_a_pod_share_a_network_and_a_name() {
    let pod = Pod::new(&["--hostname", "podded"]);
    let server = pod.start(&["httpd", "-f", "-h", "/var/www"]);
    let client = pod.start(&["sleep", "1000"]);
    let fetch = "wget -q -O - http://127.0.0.1/";
    eventually("the page is served", || {
        client.exec(&[], &["sh", "-c", fetch]).stdout == "a page\n"
    });
    assert_eq!(client.shell("hostname"), "podded\n");
    assert_eq!(server.shell("hostname"), "podded\n");
    // Files and processes are separate.
    client.shell("touch /mine");
    assert_ne!(server.exec(&[], &["test", "-e", "/mine"]).code, 0);
    assert!(!client.shell("ps").contains("httpd"));
}

#[test]
fn a_container_of_a_pod_may_end_and_the_others_stay() {
    let pod = Pod::new(&[]);
    let first = pod.start(&["sleep", "1000"]);
    let second = pod.start(&["sh", "-c", "exit 4"]);
    assert_eq!(second.ok(&["wait"]).trim(), "4");
    assert_eq!(first.shell("echo here"), "here\n");
    engine().ok(&["pod", "stop", "--time", "0", &pod.0]);
    assert_eq!(first.status(), "exited");
}

#[test]
fn a_pod_is_one_machine() {
    if runtime() == Runtime::Runc {
        println!("skipped: runc has no machines");
        return;
    }
    let alone = Pod::new(&[]);
    let _one = alone.start(&["sleep", "1000"]);
    let before = machines();
    let _two = alone.start(&["sleep", "1000"]);
    let _three = alone.start(&["sleep", "1000"]);
    // Other tests start and end machines meanwhile, so this asks the machine itself.
    let _ = before;
    let boot = |container: &Container| container.shell("cat /proc/sys/kernel/random/boot_id");
    assert_eq!(boot(&_one), boot(&_two));
    assert_eq!(boot(&_one), boot(&_three));
}

#[test]
fn a_pod_is_described_and_made_again() {
    let pod = Pod::new(&[]);
    let container = pod.start(&["sh", "-c", "echo made; sleep 1000"]);
    container.wait_for_log("made");
    let text = engine().ok(&["generate", "kube", &pod.0]);
    let name = container.name.clone();
    drop(container);
    let pod_name = pod.0.clone();
    drop(pod);
    let text = text.replace("image: ", "imagePullPolicy: Never\n    image: ");
    let file = engine().world().dir().join("pod.yaml");
    fs::write(&file, text).unwrap();
    engine().ok(&["play", "kube", file.to_str().unwrap()]);
    let again = Container::of(engine(), format!("{pod_name}-{name}"));
    again.wait_for_log("made");
    engine().ok(&["play", "kube", "--down", file.to_str().unwrap()]);
    assert_ne!(again.call(&["inspect"]).code, 0);
}

#[test]
fn what_a_machine_cannot_be_in_a_pod_is_refused_in_podmans_words() {
    if runtime() == Runtime::Runc {
        return println!("skipped: runc shares the host's network");
    }
    let pod = Pod::new(&["--network", "host"]);
    let refused = engine().call(&["run", "--rm", "--pod", &pod.0, IMAGE, "true"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("--network"), "{}", refused.stderr);
}
