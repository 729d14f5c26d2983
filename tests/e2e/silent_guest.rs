//! Guests that do not answer any more: their machine's processes are stopped. What ends a container
//! is the host's to do, and takes seconds.

#[path = "silent_guest/shim.rs"]
mod shim;

use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rvm_tests::command::{eventually, signal};
use rvm_tests::pod::{self, KIND, SANDBOX, member};
use rvm_tests::{Bundle, Rvm, leaks};

/// No engine waits longer for the end of a container that it has killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops the processes that run a world's machine, and returns them.
fn silence(rvm: &Rvm) -> Vec<i32> {
    let machine: Vec<i32> = rvm
        .processes()
        .into_iter()
        .filter(|pid| {
            let line = leaks::command_line(*pid);
            ["qemu-system", "rvm-vmm "]
                .iter()
                .any(|part| line.contains(part))
        })
        .collect();
    assert!(!machine.is_empty(), "there is no machine");
    for pid in &machine {
        signal(*pid, libc::SIGSTOP);
    }
    machine
}

/// Asserts that something does not take longer than engines wait.
fn in_time<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    let took = start.elapsed();
    println!("{what}: {took:.1?}");
    assert!(took < PATIENCE, "{what} took {took:.1?}");
    done
}

fn running(rvm: &Rvm) -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    bundle
}

#[test]
fn sigkill_ends_a_container_whose_guest_is_silent() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box").stdout(Stdio::null());
    let stderr = rvm.path("stderr");
    let mut run = run.stderr(File::create(&stderr).unwrap()).spawn().unwrap();
    eventually("it runs", || {
        rvm.call(&["state", "box"]).stdout.contains("running")
    });
    silence(&rvm);
    let killed = in_time("rvm kill", || rvm.call(&["kill", "box", "KILL"]));
    assert_eq!(killed.code, 0, "{}", killed.stderr);
    assert!(
        killed.stderr.contains("its machine is killed"),
        "{}",
        killed.stderr
    );
    assert_eq!(run.wait().unwrap().code(), Some(137));
    let told = fs::read_to_string(stderr).unwrap();
    assert!(told.contains("the sandbox ended unexpectedly"), "{told}");
}

#[test]
fn every_process_of_a_container_whose_guest_is_silent_is_killed() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm);
    silence(&rvm);
    in_time("rvm kill --all", || {
        rvm.ok(&["kill", "--all", "box", "KILL"])
    });
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
}

#[test]
fn a_signal_to_a_silent_guest_is_pending_and_arrives_when_it_answers_again() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done");
    let mut run = rvm.command(&["run", "--bundle"]);
    let out = rvm.path("out");
    run.arg(bundle.write()).arg("box");
    run.stdout(File::create(&out).unwrap())
        .stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    eventually("it is ready", || {
        fs::read_to_string(&out).unwrap() == "ready\n"
    });
    let machine = silence(&rvm);
    let sent = in_time("rvm kill", || rvm.call(&["kill", "box", "TERM"]));
    assert_eq!(sent.code, 0, "{}", sent.stderr);
    let told = "its guest does not answer; signal 15 is pending";
    assert!(sent.stderr.contains(told), "{}", sent.stderr);
    assert_eq!(rvm.status("box"), "running");
    for pid in machine {
        signal(pid, libc::SIGCONT);
    }
    assert_eq!(run.wait().unwrap().code(), Some(7));
}

#[test]
fn a_container_whose_guest_is_silent_is_never_called_not_running() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm);
    silence(&rvm);
    rvm.ok(&["kill", "box", "TERM"]);
    assert_eq!(rvm.status("box"), "running");
    in_time("rvm delete --force", || {
        rvm.ok(&["delete", "--force", "box"])
    });
}

/// The first container of a pod that runs, and a member of it.
fn pod(rvm: &Rvm) -> [Bundle; 2] {
    let first = pod::sandbox(rvm);
    let member = member(rvm, "sleep 2000", &["net", "pid"]);
    rvm.create(&member, "member");
    rvm.ok(&["start", "member"]);
    [first, member]
}

/// The processes that a container of the pod sees.
fn look(rvm: &Rvm) -> String {
    rvm.run(&member(rvm, "ps", &["net", "pid"]), "look").stdout
}

#[test]
fn sigkill_to_a_container_of_a_silent_pod_costs_the_pod_and_says_so() {
    for verb in [
        &["kill", "member", "KILL"][..],
        &["delete", "--force", "member"],
    ] {
        let rvm = Rvm::new();
        let _bundles = pod(&rvm);
        silence(&rvm);
        let killed = in_time(verb[0], || rvm.call(verb));
        assert_eq!(killed.code, 0, "{}", killed.stderr);
        let told = "the machine of its pod is killed, and every container of pod pod with it";
        assert!(killed.stderr.contains(told), "{}", killed.stderr);
        rvm.wait_for_status("pod", "stopped");
        eventually("all processes have ended", || rvm.processes().is_empty());
        rvm.ok(&["delete", "--force", "member"]);
        rvm.ok(&["delete", "pod"]);
    }
}

#[test]
fn a_container_of_a_pod_ends_alone_when_it_is_killed_or_deleted() {
    let rvm = Rvm::new();
    let [_first, member] = pod(&rvm);
    let runs = |rvm: &Rvm| look(rvm).contains("sleep 2000");
    assert!(runs(&rvm));
    in_time("rvm kill", || rvm.ok(&["kill", "member", "KILL"]));
    rvm.wait_for_status("member", "stopped");
    assert!(!runs(&rvm));
    rvm.ok(&["delete", "member"]);

    rvm.create(&member, "member");
    rvm.ok(&["start", "member"]);
    assert!(runs(&rvm));
    let monitor = rvm.state("member")["pid"].as_i64().unwrap();
    signal(monitor as i32, libc::SIGKILL);
    rvm.wait_for_status("member", "stopped");
    eventually("its process has ended in the guest", || !runs(&rvm));
    rvm.ok(&["delete", "member"]);

    rvm.create(&member, "member");
    rvm.ok(&["start", "member"]);
    in_time("rvm delete", || rvm.ok(&["delete", "--force", "member"]));
    assert!(!runs(&rvm));
    assert_eq!(rvm.status("pod"), "running");
    rvm.ok(&["delete", "--force", "pod"]);
}

#[test]
fn an_added_process_ends_with_the_process_that_stands_for_it() {
    let rvm = Rvm::new();
    let _bundle = running(&rvm);
    let pid = rvm.path("pid");
    let mut exec = rvm.command(&["exec", "--detach", "--pid-file", pid.to_str().unwrap()]);
    exec.args(["box", "sleep", "3000"]).stdout(Stdio::null());
    assert!(exec.status().unwrap().success());
    let runs = |rvm: &Rvm| rvm.ok(&["ps", "box"]).contains("3000");
    assert!(runs(&rvm));
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    signal(pid, libc::SIGKILL);
    eventually("it has ended in the guest", || !runs(&rvm));
    assert_eq!(rvm.status("box"), "running");
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_guest_that_falls_silent_is_reported_and_its_return_too() {
    let rvm = Rvm::new();
    let log = rvm.path("log");
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut create = rvm.command(&["--log", log.to_str().unwrap(), "create", "--bundle"]);
    create.arg(bundle.write()).arg("box").stdout(Stdio::null());
    assert!(create.stderr(Stdio::null()).status().unwrap().success());
    rvm.ok(&["start", "box"]);
    let since = |rvm: &Rvm| rvm.state("box")["annotations"]["org.rvm.guest.silent-since"].clone();
    assert!(since(&rvm).is_null());
    let machine = silence(&rvm);
    eventually("the silence is reported", || since(&rvm).is_string());
    assert_eq!(rvm.status("box"), "running");
    assert!(rvm.ok(&["list"]).contains("running (silent)"));
    let told = fs::read_to_string(&log).unwrap();
    assert!(told.contains("the guest does not answer"), "{told}");
    assert!(told.contains("the guest's console"), "{told}");

    for pid in machine {
        signal(pid, libc::SIGCONT);
    }
    eventually("the return is reported", || since(&rvm).is_null());
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .contains("the guest answers again")
    );
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    rvm.ok(&["delete", "box"]);
}
