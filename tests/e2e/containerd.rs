//! containerd with rvm's shim, driven by ctr.

#[path = "containerd/checkpoint.rs"]
mod checkpoint;

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::Containerd;
use rvm_tests::command::{self, eventually, signal};

/// Runs until SIGTERM.
const WAITS: &str = "while :; do sleep 0.2; done";

/// Waits for a file on the host to appear in the container as /go/exit, then ends with 7.
const UNTIL_TOLD: &str = "while ! [ -e /go/exit ]; do sleep 0.1; done; exit 7";

/// The option that shares a directory as /go.
fn go(dir: &tempfile::TempDir) -> String {
    let path = dir.path().display();
    format!("--mount=type=bind,src={path},dst=/go,options=rbind:rw")
}

#[test]
fn a_program_runs_and_its_output_and_exit_code_arrive() {
    let containerd = Containerd::new();
    let finished = containerd.run(&[], "box", "uname -r; echo err >&2; exit 3");
    assert_eq!(finished.code, 3, "{}", finished.stderr);
    let host = rustix::system::uname();
    assert_ne!(finished.stdout.trim(), host.release().to_str().unwrap());
    assert!(finished.stderr.contains("err\n"), "{}", finished.stderr);
}

#[test]
fn the_verbs_lead_a_container_through_its_life_and_every_step_is_told() {
    let containerd = Containerd::new();
    let events = containerd.events();
    containerd.start_container(&[], "box", WAITS);
    let (status, pid) = containerd.task("box").unwrap();
    assert_eq!(status, "RUNNING");
    assert!(fs::read_link(format!("/proc/{pid}/ns/net")).is_ok());
    let done = containerd.exec("box", "one", "echo out; exit 4");
    assert_eq!((done.code, &*done.stdout), (4, "out\n"));
    containerd.ok(&["task", "pause", "box"]);
    assert_eq!(containerd.task("box").unwrap().0, "PAUSED");
    containerd.ok(&["task", "resume", "box"]);
    assert_eq!(containerd.task("box").unwrap().0, "RUNNING");
    containerd.ok(&["task", "kill", "--signal", "KILL", "box"]);
    containerd.wait_for_status("box", "STOPPED");
    containerd.remove("box");

    let told = events.until("/tasks/delete");
    let topics: Vec<_> = told
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let wanted = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(topics, wanted);
    assert!(told[4].contains("\"id\":\"one\"") && told[4].contains("\"exit_status\":4"));
    assert!(told[7].contains("\"id\":\"box\"") && told[7].contains("\"exit_status\":137"));
    assert!(told[7].contains(&format!("\"pid\":{pid}")), "{}", told[7]);
}

#[test]
fn processes_and_what_they_use_are_shown() {
    let containerd = Containerd::new();
    containerd.start_container(&[], "box", WAITS);
    let list = containerd.ok(&["task", "ps", "box"]);
    assert!(list.lines().count() >= 2, "{list}");
    let mut exec =
        containerd.command(&["task", "exec", "--exec-id", "one", "box", "sleep", "1000"]);
    let mut child = exec.stdout(Stdio::null()).spawn().unwrap();
    eventually("the process is listed by its id", || {
        containerd
            .ok(&["task", "ps", "box"])
            .contains("ExecID:\"one\"")
            || containerd.ok(&["task", "ps", "box"]).contains("one")
    });
    let metrics = containerd.ok(&["task", "metrics", "box"]);
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(value("memory.usage ") > 100_000, "{metrics}");
    assert!(value("cpu.usage_usec ") > 1000, "{metrics}");
    assert!(value("pids.current ") >= 2, "{metrics}");
    child.kill().unwrap();
    child.wait().unwrap();
    containerd.remove("box");
}

#[test]
fn standard_input_reaches_the_program_and_ends() {
    let containerd = Containerd::new();
    // ctr reports the end of input only once it knows the program.
    let feed = |mut command: Command| {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"some text\n").unwrap();
        drop(stdin);
        let output = command::wait(child);
        assert_eq!(output.stdout, b"some text\nend\n");
        assert!(output.status.success());
    };
    let script = "echo ready; cat; echo end";
    feed(containerd.run_command(&["--rm"], "box", script));
    containerd.start_container(&[], "long", WAITS);
    for count in 0..5 {
        let id = format!("exec-{count}");
        let args = ["task", "exec", "--exec-id", &id, "long", "sh", "-c", script];
        feed(containerd.command(&args));
    }
    containerd.remove("long");
}

#[test]
fn no_output_is_lost_at_the_end() {
    let containerd = Containerd::new();
    let script = "yes 0123456789abcde | head -n 200000; echo end";
    let finished = containerd.run(&[], "box", script);
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stdout.ends_with("end\n"));
    assert_eq!(finished.stdout.len(), 16 * 200_000 + 4);
}

/// Runs a command on a terminal of this size; returns its output.
fn on_terminal(containerd: &Containerd, rows: u16, cols: u16, args: &str) -> (i32, String) {
    let world = containerd.world();
    let line = format!(
        "stty rows {rows} cols {cols}; ctr --address {} --namespace {} {args}",
        world.path("sock").display(),
        containerd.namespace(),
    );
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::null());
    world.adopt(&mut script);
    let finished = command::finish(script);
    (finished.code, finished.stdout)
}

#[test]
fn a_terminal_has_the_clients_size() {
    let containerd = Containerd::new();
    containerd.start_container(&[], "box", WAITS);
    let args = "task exec --tty --exec-id one box sh -c 'tty; sleep 1; stty size; exit 9'";
    let (code, shown) = on_terminal(&containerd, 33, 77, args);
    assert!(
        shown.contains("/dev/pts/") && shown.contains("33 77"),
        "{shown}"
    );
    assert_eq!(code, 9, "{shown}");
    containerd.remove("box");
}

#[test]
fn a_client_attaches_to_a_container_that_runs() {
    let containerd = Containerd::new();
    let dir = tempfile::tempdir().unwrap();
    // `ctr run` reads the output until it returns.
    let script = format!(
        "while ! [ -e /go/started ]; do sleep 0.1; done; echo before; {}",
        UNTIL_TOLD.replace("exit 7", "echo after; exit 7")
    );
    containerd.start_container(&[&go(&dir)], "box", &script);
    fs::write(dir.path().join("started"), "").unwrap();
    let mut attach = containerd.command(&["task", "attach", "box"]);
    let child = attach.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    fs::write(dir.path().join("exit"), "").unwrap();
    let output = command::wait(child);
    assert_eq!(output.stdout, b"before\nafter\n");
    assert_eq!(output.status.code(), Some(7));
    containerd.remove("box");
}

#[test]
fn output_goes_to_a_file_or_a_program_where_that_is_asked_for() {
    let containerd = Containerd::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let script = "echo out; echo err >&2";
    let uri = format!("--log-uri=file://{}", path("file"));
    containerd.start_container(&[&uri], "file", script);
    containerd.wait_for_status("file", "STOPPED");
    containerd.remove("file");
    let text = fs::read_to_string(path("file")).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");

    // What it does after the end of the output may take time, as long as the task is not deleted.
    let program = path("log");
    let log = format!(
        "#!/bin/sh\nexec 5>&-\ncat <&3 >{0}.part\nsleep 1\nmv {0}.part {0}\n",
        path("out")
    );
    fs::write(&program, log).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, executable).unwrap();
    containerd.start_container(
        &[&format!("--log-uri=binary://{program}")],
        "binary",
        script,
    );
    containerd.wait_for_status("binary", "STOPPED");
    eventually("the program has logged", || {
        fs::read_to_string(path("out")).is_ok_and(|text| text == "out\n")
    });
    containerd.remove("binary");
}

#[test]
fn a_container_that_ends_while_containerd_is_away_is_told_of_later() {
    let containerd = Containerd::new();
    let dir = tempfile::tempdir().unwrap();
    // First a process is killed for lack of memory: it keeps the last line, which never ends.
    let script = UNTIL_TOLD.replace("exit 7", "tail /dev/zero; exit 7");
    let options = [&*go(&dir), "--memory-limit", "33554432"];
    containerd.start_container(&options, "box", &script);
    let (_, pid) = containerd.task("box").unwrap();
    let shim = containerd.shims();
    containerd.kill();
    fs::write(dir.path().join("exit"), "").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let events = containerd.start_with_events();
    assert_eq!(containerd.shims(), shim, "the shim has lived on");
    let told = events.until("/tasks/exit");
    assert!(told[0].starts_with("/tasks/oom"), "{told:?}");
    assert!(
        told.last().unwrap().contains("\"exit_status\":7"),
        "{told:?}"
    );
    assert_eq!(containerd.task("box").unwrap(), ("STOPPED".to_owned(), pid));
    let deleted = containerd.ctr(&["task", "delete", "box"]);
    assert!(deleted.stderr.contains("exit code 7"), "{}", deleted.stderr);
    containerd.remove("box");
}

#[test]
fn a_shim_that_is_killed_leaves_nothing_and_its_container_is_told_dead() {
    let containerd = Containerd::new();
    let events = containerd.events();
    containerd.start_container(&[], "box", WAITS);
    let [shim] = containerd.shims()[..] else {
        panic!()
    };
    let start = Instant::now();
    signal(shim, libc::SIGKILL);
    let told = events.until("/tasks/exit");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert!(
        told.last().unwrap().contains("\"exit_status\":137"),
        "{told:?}"
    );
    eventually("the task is gone", || containerd.task("box").is_none());
    containerd.ok(&["container", "delete", "box"]);
}

#[test]
fn a_shim_that_is_killed_while_it_makes_a_container_leaves_nothing() {
    let containerd = Containerd::new();
    let state = containerd.state().join("box");
    // The host's files are being shared; the guest boots.
    for stage in ["shared", "sandbox.json"] {
        let mut run = containerd.run_command(&["--detach"], "box", WAITS);
        let run = run.stderr(Stdio::piped()).spawn().unwrap();
        eventually("it comes so far", || state.join(stage).exists());
        let sockets = containerd.shim_sockets();
        signal(containerd.shims()[0], libc::SIGKILL);
        let finished = command::Finished::from(command::wait(run));
        assert_ne!(finished.code, 0, "{}", finished.stderr);
        eventually("nothing is left", || !state.exists());
        assert!(!sockets.iter().any(|socket| socket.exists()), "{sockets:?}");
        containerd.ctr(&["container", "delete", "box"]);
    }
}

#[test]
fn what_nobody_will_ask_to_remove_is_removed_by_the_next_shim() {
    let containerd = Containerd::new();
    let has_state = |id: &str| containerd.state().join(id).join("state.json").exists();
    containerd.start_container(&[], "box", WAITS);
    containerd.start_container(&[], "other", WAITS);
    let sockets = containerd.shim_sockets();
    assert_eq!(sockets.len(), 2);
    containerd.world().kill_all();
    containerd.kill();
    // As after a clean-up by hand: containerd no longer knows any task.
    let run = containerd.world().path("run");
    rvm_tests::leaks::unmount_below(&run);
    fs::remove_dir_all(&run).unwrap();
    containerd.start();
    assert!(has_state("box") && has_state("other"));
    for id in ["box", "other"] {
        containerd.ok(&["container", "delete", id]);
    }
    containerd.start_container(&[], "box", WAITS);
    eventually("the other is gone", || !has_state("other"));
    assert!(!sockets.iter().any(|socket| socket.exists()), "{sockets:?}");
    assert_eq!(containerd.exec("box", "one", "echo on").stdout, "on\n");
    containerd.remove("box");
}

#[test]
fn a_machine_that_is_killed_ends_its_container() {
    let containerd = Containerd::new();
    containerd.start_container(&[], "box", WAITS);
    let machine = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("qemu") || name.starts_with("rvm-vmm")
    };
    let machine = containerd.world().processes().into_iter().find(machine);
    let start = Instant::now();
    signal(machine.unwrap(), libc::SIGKILL);
    containerd.wait_for_status("box", "STOPPED");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let deleted = containerd.ctr(&["task", "delete", "box"]);
    assert!(
        deleted.stderr.contains("exit code 137"),
        "{}",
        deleted.stderr
    );
    containerd.remove("box");
}

#[test]
fn a_process_killed_for_want_of_memory_is_told_of() {
    let containerd = Containerd::new();
    let events = containerd.events();
    // It keeps the last line, which never ends.
    let finished = containerd.run(&["--memory-limit", "33554432"], "box", "tail /dev/zero");
    assert_ne!(finished.code, 0);
    let told = events.until("/tasks/exit");
    let oom = told.iter().position(|line| line.starts_with("/tasks/oom"));
    assert!(oom.is_some_and(|index| index < told.len() - 1), "{told:#?}");
    drop(events);
}

#[test]
fn containers_of_a_pod_share_a_shim_and_a_machine() {
    let containerd = Containerd::new();
    let kind = |kind: &str| format!("--annotation=io.kubernetes.cri.container-type={kind}");
    let pod = "--annotation=io.kubernetes.cri.sandbox-id=pod";
    containerd.start_container(&[&kind("sandbox"), pod], "pod", WAITS);
    let (_, pid) = containerd.task("pod").unwrap();
    let namespaces: Vec<_> = [
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
    ]
    .iter()
    .map(|(kind, file)| format!("--with-ns={kind}:/proc/{pid}/ns/{file}"))
    .collect();
    let mut options = vec![pod.to_owned(), kind("container")];
    options.extend(namespaces);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    containerd.start_container(&options, "one", WAITS);
    assert_eq!(containerd.shims().len(), 1);
    let (_, own) = containerd.task("one").unwrap();
    assert_ne!(own, pid);
    let namespace = |id: &str, exec_id: &str| {
        let script = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; hostname";
        containerd.exec(id, exec_id, script).stdout
    };
    assert_eq!(namespace("one", "a"), namespace("pod", "b"));
    let refused = containerd.ctr(&["task", "checkpoint", "one"]).stderr;
    assert!(refused.contains("shares its machine"), "{refused}");
    assert_eq!(containerd.task("one").unwrap().0, "RUNNING");
    // A sidecar starts and ends while the pod runs.
    let finished = containerd.run(&options, "two", "exit 6");
    assert_eq!(finished.code, 6, "{}", finished.stderr);
    assert_eq!(containerd.task("one").unwrap().0, "RUNNING");
    containerd.remove("one");
    containerd.remove("pod");
}

#[test]
fn mistakes_are_refused_with_a_line_that_says_why() {
    let containerd = Containerd::new();
    let refused = |options: &[&str], script: &str| {
        let finished = containerd.run(options, "box", script);
        assert_ne!(finished.code, 0);
        containerd.ctr(&["container", "delete", "box"]);
        finished.stderr
    };
    let stderr = refused(&["--cwd", "relative"], "true");
    assert!(stderr.contains("process.cwd"), "{stderr}");
    let stderr = refused(&["--with-ns=ipc:/proc/1/ns/ipc"], "true");
    assert!(stderr.contains("/proc/1/ns/ipc"), "{stderr}");
    let mut run = containerd.command(&["run", "--rm", "--snapshotter"]);
    run.arg(rvm_tests::containerd::snapshotter())
        .args([
            "--runtime",
            "io.containerd.rvm.v2",
            "--runtime-config-path",
            "/nonexistent",
        ])
        .args([rvm_tests::image::NAME, "box", "true"]);
    let finished = command::finish(run);
    assert!(
        finished.stderr.contains("/nonexistent"),
        "{}",
        finished.stderr
    );
    containerd.ctr(&["container", "delete", "box"]);
}
