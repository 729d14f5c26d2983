//! From `create` to `rm`, and what can be done to a container on the way.

use std::time::{Duration, Instant};

use rvm_tests::command::eventually;

use crate::engine;

/// Prints that it runs, then counts the signals that it gets.
const TRAPS: &str = "trap 'echo got term; exit 7' TERM; trap 'echo got usr1' USR1; echo ready; \
                     while :; do sleep 0.1; done";

#[test]
fn a_stopped_container_had_its_chance_to_end() {
    let container = engine().start(&[], &["sh", "-c", TRAPS]);
    container.wait_for_log("ready");
    container.ok(&["kill", "--signal", "USR1"]);
    container.wait_for_log("got usr1");
    container.ok(&["stop", "--time", "60"]);
    assert_eq!(container.status(), "exited");
    assert_eq!(container.inspect(".State.ExitCode"), "7");
    assert!(
        container.logs().contains("got term"),
        "{}",
        container.logs()
    );
}

#[test]
fn a_container_is_stopped_by_its_own_signal() {
    for (signal, name) in [("SIGUSR1", "USR1"), ("SIGRTMIN+3", "37")] {
        let script = format!(
            "trap 'echo told; exit 5' {name}; trap 'exit 6' TERM; echo ready; \
             while :; do sleep 0.1; done"
        );
        let container = engine().start(&["--stop-signal", signal], &["sh", "-c", &script]);
        container.wait_for_log("ready");
        container.ok(&["stop", "--time", "60"]);
        assert_eq!(container.inspect(".State.ExitCode"), "5", "{signal}");
        assert!(container.logs().contains("told"), "{}", container.logs());
    }
}

#[test]
fn a_container_that_will_not_stop_is_killed() {
    let container = engine().start(
        &[],
        &[
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 0.1; done",
        ],
    );
    container.wait_for_log("ready");
    let start = Instant::now();
    container.ok(&["stop", "--time", "1"]);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(container.status(), "exited");
    assert_eq!(container.inspect(".State.ExitCode"), "137");
}

#[test]
fn kill_kills() {
    let container = engine().start(&[], &["sleep", "1000"]);
    container.ok(&["kill"]);
    container.wait_for_status("exited");
    assert_eq!(container.inspect(".State.ExitCode"), "137");
    assert_ne!(container.call(&["kill"]).code, 0, "it runs no more");
}

#[test]
fn a_created_container_starts_stops_and_starts_again_with_its_files() {
    let script = "echo run >> /runs; wc -l < /runs; echo up; while :; do sleep 0.1; done";
    let container = engine().create(&[], &["sh", "-c", script]);
    assert_eq!(container.status(), "created");
    container.ok(&["start"]);
    container.wait_for_log("1\nup");
    container.ok(&["restart", "--time", "0"]);
    container.wait_for_log("2\nup");
    assert_eq!(container.status(), "running");
    let diff = container.ok(&["diff"]);
    assert!(diff.contains("A /runs"), "{diff}");
}

#[test]
fn wait_tells_the_exit_code() {
    let container = engine().start(&[], &["sh", "-c", "exit 9"]);
    assert_eq!(container.ok(&["wait"]).trim(), "9");
}

#[test]
fn attach_joins_the_streams_of_a_container() {
    let container = engine().start(&["--interactive", "--tty"], &["sh"]);
    let mut terminal = container.at_terminal(&["attach", &container.name]);
    terminal.write("echo one$((1 + 1))\r");
    terminal.expect("one2\r\n");
    terminal.write("stty size\r");
    terminal.expect("30 90\r\n");
    // Ctrl-P Ctrl-Q detaches.
    terminal.write("\x10");
    std::thread::sleep(Duration::from_millis(300));
    terminal.write("\x11");
    // Docker returns 1, and podman 0.
    terminal.wait();
    assert_eq!(container.status(), "running");
    let mut terminal = container.at_terminal(&["attach", &container.name]);
    terminal.write("exit 5\r");
    terminal.wait();
    container.wait_for_status("exited");
    assert_eq!(container.inspect(".State.ExitCode"), "5");
}

#[test]
fn logs_are_kept_by_stream() {
    let container = engine().start(&[], &["sh", "-c", "echo out; echo err >&2"]);
    container.ok(&["wait"]);
    let logs = container.call(&["logs"]);
    assert_eq!(logs.stdout, "out\n");
    assert_eq!(logs.stderr, "err\n");
}

#[test]
fn a_paused_container_stands_still() {
    let beat = "while :; do echo x >> /beat; sleep 0.05; done";
    let container = engine().start(&[], &["sh", "-c", beat]);
    let count = || -> usize { container.shell("cat /beat | wc -l").trim().parse().unwrap() };
    eventually("it beats", || count() > 3);
    container.ok(&["pause"]);
    assert_eq!(container.status(), "paused");
    assert_ne!(container.exec(&[], &["true"]).code, 0, "exec is refused");
    std::thread::sleep(Duration::from_secs(2));
    container.ok(&["unpause"]);
    assert_eq!(container.status(), "running");
    let after = count();
    eventually("it beats again", || count() > after);
}

#[test]
fn a_renamed_container_is_found_by_its_new_name() {
    let mut container = engine().start(&[], &["sleep", "1000"]);
    let new = format!("{}-renamed", container.name);
    engine().ok(&["rename", &container.name, &new]);
    container.name = new;
    assert_eq!(container.status(), "running");
    assert_eq!(container.shell("echo here"), "here\n");
}

#[test]
fn a_commit_holds_what_the_container_wrote() {
    let container = engine().start(&[], &["sh", "-c", "echo kept > /kept; sync; sleep 1000"]);
    eventually("it has written", || {
        container.exec(&[], &["cat", "/kept"]).stdout == "kept\n"
    });
    let image = format!("localhost/{}:latest", container.name);
    engine().ok(&["commit", &container.name, &image]);
    let diff = container.ok(&["diff"]);
    assert!(diff.contains("A /kept"), "{diff}");
    drop(container);
    let copy = engine().name();
    let dir = tempfile::tempdir_in(engine().world().dir()).unwrap();
    engine().ok(&["create", "--name", &copy.name, &image]);
    let to = dir.path().join("kept");
    engine().ok(&["cp", &format!("{}:/kept", copy.name), to.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(to).unwrap(), "kept\n");
    drop(copy);
    engine().ok(&["rmi", "--force", &image]);
}

#[test]
fn a_restart_policy_is_followed() {
    let container = engine().start(
        &["--restart", "on-failure:2"],
        &["sh", "-c", "echo run; exit 3"],
    );
    eventually("it was started thrice", || {
        container.logs().matches("run").count() == 3
    });
    container.wait_for_status("exited");
    assert_eq!(container.inspect(".State.ExitCode"), "3");
}

#[test]
fn a_health_check_runs_in_the_container() {
    let check = "test -e /healthy";
    let options = [
        "--health-cmd",
        check,
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
    ];
    let container = engine().start(&options, &["sleep", "1000"]);
    let health = || container.inspect(".State.Health.Status");
    // Podman lets systemd run the check at intervals, and there is none here.
    let look = || {
        if crate::IS_PODMAN {
            container.call(&["healthcheck", "run"]);
        }
        health()
    };
    eventually("it is unhealthy", || look() == "unhealthy");
    container.shell("touch /healthy");
    eventually("it is healthy", || look() == "healthy");
}
