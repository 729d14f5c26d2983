//! Machines, shims and containerd that die: what CRI reports, and that nothing is left.

use std::fs;
use std::time::{Duration, Instant};

use rvm_tests::command::{eventually, signal};
use rvm_tests::cri::{Cri, api};

use super::{WAITS, machine, machines, mount, small};

#[test]
fn a_guest_whose_kernel_panics_is_told_dead_and_leaves_nothing() {
    let cri = Cri::new();
    let volume = tempfile::tempdir().unwrap();
    let mut config = small(&cri, "panic");
    let linux = config.linux.mut_or_insert_default();
    linux.security_context.mut_or_insert_default().privileged = true;
    let pod = cri.run_pod(config).unwrap();
    let other = pod.start("other", WAITS, |_| {});
    // `tail` keeps the last line, which never ends, and the kernel panics instead of killing it.
    let script = "echo 2 >/proc/sys/vm/panic_on_oom || exit 9; \
                  while ! [ -e /go/now ]; do sleep 0.1; done; tail /dev/zero";
    let box_ = pod.start("box", script, |config| {
        mount(config, volume.path(), "/go", true);
        let linux = config.linux.mut_or_insert_default();
        linux
            .resources
            .mut_or_insert_default()
            .memory_limit_in_bytes = 16 << 20;
        linux.security_context.mut_or_insert_default().privileged = true;
    });
    let events = cri.containerd().events();
    fs::write(volume.path().join("now"), "").unwrap();
    let start = Instant::now();
    let mut told: Vec<String> = Vec::new();
    for container in [&box_, &other] {
        let exit = |line: &String| line.contains(&container.id) && line.contains(":137");
        while !told.iter().any(exit) {
            told.extend(events.until("/tasks/exit"));
        }
    }
    let told_after = start.elapsed();
    for container in [&box_, &other] {
        assert_eq!(container.ended().exit_code, 137);
    }
    assert!(
        !told.iter().any(|line| line.starts_with("/tasks/oom")),
        "{told:#?}"
    );
    eventually("the pod is not ready", || {
        pod.status().state == api::PodSandboxState::SANDBOX_NOTREADY.into()
    });
    println!(
        "told after {told_after:?}, not ready after {:?}",
        start.elapsed()
    );
    // Filling the memory and the panic itself take time on a software CPU.
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let log = cri.containerd().log();
    assert!(log.contains("the guest crashed") && log.contains("Kernel panic - not syncing"));
    pod.remove();
}

#[test]
fn what_is_killed_all_at_once_is_removed_when_containerd_is_back() {
    let cri = Cri::new();
    let pod = cri.run_pod(small(&cri, "all")).unwrap();
    let box_ = pod.start("box", WAITS, |_| {});
    let ended = pod.start("ended", "exit 7", |_| {});
    assert_eq!(ended.ended().exit_code, 7);
    let sockets = cri.containerd().shim_sockets();
    assert!(!sockets.is_empty());
    cri.kill_all();
    cri.start();
    eventually("the pod is not ready", || {
        pod.status().state == api::PodSandboxState::SANDBOX_NOTREADY.into()
    });
    let code = box_.ended().exit_code;
    assert!([137, 255].contains(&code), "{code}");
    assert_eq!(ended.ended().exit_code, 7);
    // Nothing that is left keeps others from starting.
    let next = cri.run_pod(small(&cri, "next")).unwrap();
    assert_eq!(next.start("box", WAITS, |_| {}).shell("echo on"), "on\n");
    next.remove();
    pod.remove();
    assert!(!sockets.iter().any(|socket| socket.exists()), "{sockets:?}");
}

#[test]
fn a_pod_whose_machine_or_shim_dies_is_told_dead_and_replaced() {
    let cri = Cri::new();
    // Some versions of containerd retry calls that fail without a shim.
    for (name, limit) in [("machine", 2), ("shim", 5)] {
        let pod = cri.run_pod(small(&cri, name)).unwrap();
        let box_ = pod.start("box", WAITS, |_| {});
        let victim = match name {
            "shim" => cri.containerd().shims()[0],
            _ => machine(&cri),
        };
        let start = Instant::now();
        signal(victim, libc::SIGKILL);
        // Some versions of containerd report 255 if there is no shim to ask.
        let code = box_.ended().exit_code;
        assert!(
            code == 137 || (name, code) == ("shim", 255),
            "{name}: {code}"
        );
        eventually("the pod is not ready", || {
            pod.status().state == api::PodSandboxState::SANDBOX_NOTREADY.into()
        });
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_secs(limit), "{name}: {elapsed:?}");
        pod.remove();
    }
    // After a restart containerd learns what happened meanwhile.
    let pod = cri.run_pod(small(&cri, "restart")).unwrap();
    let box_ = pod.start("box", "sleep 2; exit 7", |_| {});
    let stays = pod.start("stays", WAITS, |_| {});
    cri.kill();
    std::thread::sleep(Duration::from_secs(3));
    cri.start();
    assert_eq!(box_.ended().exit_code, 7);
    assert_eq!(stays.shell("echo here"), "here\n");
    pod.remove();
}

#[test]
fn a_pod_whose_guest_is_silent_is_stopped_and_removed() {
    let cri = Cri::new();
    let started = || {
        let pod = cri.run_pod(small(&cri, "silent")).unwrap();
        let box_ = pod.start("box", WAITS, |_| {});
        for pid in machines(&cri) {
            signal(pid, libc::SIGSTOP);
        }
        (pod, box_)
    };
    let in_time = |what: &str, work: &dyn Fn()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.1?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(25), "{what}");
    };
    let (pod, box_) = started();
    in_time("StopPodSandbox", &|| pod.stop());
    assert_eq!(box_.ended().exit_code, 137);
    pod.remove();

    // What kubelet does when a container's probe fails.
    let (pod, box_) = started();
    in_time("StopContainer", &|| box_.stop(2));
    assert_eq!(box_.ended().exit_code, 137);
    pod.remove();
}
