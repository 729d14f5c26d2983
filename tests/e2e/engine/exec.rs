//! `exec`, and other verbs for a running container.

use std::io::Write;
use std::process::Stdio;
use std::sync::OnceLock;

use rvm_tests::command::{self, eventually};
use rvm_tests::engine::{Container, Runtime, runtime};

use crate::engine;

/// A container that does nothing, shared by tests that change nothing in it.
fn idle() -> &'static Container<'static> {
    static IDLE: OnceLock<Container<'static>> = OnceLock::new();
    IDLE.get_or_init(|| engine().start(&["--env", "FROM=run"], &["sleep", "100000"]))
}

#[test]
fn exec_relays_output_by_stream_and_the_exit_code() {
    let finished = idle().exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(finished.stdout, "out\n");
    assert_eq!(finished.stderr, "err\n");
    assert_eq!(finished.code, 7);
}

#[test]
fn exec_takes_input() {
    let mut exec = engine().command(&[
        "exec",
        "--interactive",
        &idle().name,
        "sh",
        "-c",
        "cat; echo end",
    ]);
    exec.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = exec.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = command::wait(child);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nend\n");
}

#[test]
fn exec_at_a_terminal() {
    let script = "trap 'stty size' WINCH; tty; stty size; while [ -z \"$line\" ]; do read line; done; echo got $line; \
                  while :; do sleep 0.1; done";
    let args = [
        "exec",
        "--interactive",
        "--tty",
        &idle().name,
        "sh",
        "-c",
        script,
    ];
    let mut terminal = idle().at_terminal(&args);
    terminal.expect("/dev/pts/");
    terminal.expect("30 90\r\n");
    terminal.write("line\r");
    terminal.expect("got line\r\n");
    terminal.resize(40, 100);
    terminal.expect("40 100\r\n");
    terminal.write("\x03");
    assert_eq!(terminal.wait(), Some(130));
}

#[test]
fn exec_has_the_containers_environment_and_its_own() {
    let options = [
        "--env",
        "OWN=exec",
        "--workdir",
        "/var/www",
        "--user",
        "guest",
    ];
    let finished = idle().exec(&options, &["sh", "-c", "echo $FROM $OWN; pwd; id -u"]);
    assert_eq!(finished.stdout, "run exec\n/var/www\n1000\n");
}

#[test]
fn exec_is_in_the_containers_namespaces() {
    // pid 1 is the container's own, and so are its children.
    let line = idle().shell("tr '\\0' ' ' </proc/1/cmdline");
    assert_eq!(line.trim(), "sleep 100000");
    let ours = idle().shell("for n in mnt pid ipc uts net; do readlink /proc/self/ns/$n; done");
    let first = idle().shell("for n in mnt pid ipc uts net; do readlink /proc/1/ns/$n; done");
    assert_eq!(ours, first);
}

#[test]
fn exec_of_a_missing_program_is_said_by_name() {
    let finished = idle().exec(&[], &["/no/such/program"]);
    // Docker before 26 returns 126, as for a file that cannot be executed.
    assert!([126, 127].contains(&finished.code), "{}", finished.stderr);
    let said = finished.stderr + &finished.stdout;
    assert!(said.contains("/no/such/program"), "{said}");
}

#[test]
fn exec_of_what_cannot_be_executed_is_126() {
    let finished = idle().exec(&[], &["/etc/passwd"]);
    assert_eq!(finished.code, 126, "{}", finished.stderr);
}

#[test]
fn exec_dead_by_a_signal_is_128_and_the_signal() {
    let finished = idle().exec(&[], &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(finished.code, 143, "{}", finished.stderr);
}

#[test]
fn exec_detached_returns_at_once_and_runs_on() {
    let finished = idle().exec(
        &["--detach"],
        &["sh", "-c", "sleep 1; echo done > /tmp/detached"],
    );
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    command::eventually("the detached program is done", || {
        idle().exec(&[], &["cat", "/tmp/detached"]).stdout == "done\n"
    });
}

#[test]
fn exec_in_parallel_loses_no_output() {
    let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let finished = idle().exec(&[], &["seq", "2000"]);
                assert_eq!(finished.code, 0, "{}", finished.stderr);
                assert_eq!(finished.stdout, expected);
            });
        }
    });
}

#[test]
fn stats_are_those_of_the_container() {
    let format = "{{.MemUsage}} {{.PIDs}}";
    let line = idle().ok(&["stats", "--no-stream", "--format", format]);
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert!(!fields[0].starts_with("0B"), "{line}");
    assert!(fields[3].parse::<u32>().unwrap() >= 1, "{line}");
}

#[test]
fn copies_go_both_ways() {
    let dir = tempfile::tempdir_in(engine().world().dir()).unwrap();
    let source = dir.path().join("source");
    std::fs::write(&source, "to the container\n").unwrap();
    let inside = format!("{}:/tmp/copied", idle().name);
    engine().ok(&["cp", source.to_str().unwrap(), &inside]);
    assert_eq!(idle().shell("cat /tmp/copied"), "to the container\n");
    idle().shell("mkdir -p /tmp/tree/sub; echo from the container > /tmp/tree/sub/file");
    let back = dir.path().join("back");
    let inside = format!("{}:/tmp/tree", idle().name);
    engine().ok(&["cp", &inside, back.to_str().unwrap()]);
    assert_eq!(
        std::fs::read_to_string(back.join("sub/file")).unwrap(),
        "from the container\n"
    );
}

#[test]
fn top_shows_processes_of_the_container_and_of_no_other() {
    let list = idle().ok(&["top"]);
    let rows: Vec<&str> = list.lines().skip(1).collect();
    assert!(!rows.is_empty(), "{list}");
    let of_the_host = ["rvm", "qemu-system", "conmon", "dockerd"];
    let is_of_the_host = |row: &&str| of_the_host.iter().any(|name| row.contains(name));
    if runtime() == Runtime::Rvm && !crate::IS_PODMAN {
        // Docker runs the host's ps, which shows the processes that run the machine.
        return assert!(rows.iter().all(is_of_the_host), "{list}");
    }
    // Programs of other tests may be in the list.
    assert!(
        rows.iter().any(|row| row.contains("sleep 100000")),
        "{list}"
    );
    assert!(!rows.iter().any(is_of_the_host), "{list}");
    if !crate::IS_PODMAN {
        return;
    }
    // Processes that the container started since, by its own pids and names, and ended ones.
    let name = &idle().name;
    let top = || engine().ok(&["top", name, "pid", "ppid", "user", "capeff", "args"]);
    let sleeps = |list: &str| list.lines().filter(|row| row.contains("sleep 77")).count();
    let pid = idle().shell("sleep 77 >/dev/null 2>&1 & echo $!");
    let list = top();
    let row = list.lines().find(|row| row.contains("sleep 77")).unwrap();
    let fields: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((fields[0], fields[2]), (pid.trim(), "root"), "{list}");
    let first = list.lines().find(|row| row.starts_with("1 ")).unwrap();
    assert!(first.contains(" 0 ") && first.contains("sleep"), "{list}");
    assert!(
        row.contains("CHOWN") && !row.contains("SYS_ADMIN"),
        "{list}"
    );
    idle().shell(&format!("kill {pid}"));
    eventually("it is gone", || sleeps(&top()) == 0);
}

#[test]
fn inspect_names_a_process_that_lives() {
    let pid: i32 = idle().inspect(".State.Pid").parse().unwrap();
    assert!(pid > 1);
    assert_ne!(engine().world().command_line(pid), "");
}
