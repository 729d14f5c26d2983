//! `rvm exec`: programs in a running container.

#[path = "exec/descriptors.rs"]
mod descriptors;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rvm_tests::command::{self, Finished, eventually, finish};
use rvm_tests::terminal::{self, Reception};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

/// A container that only waits.
fn waiting(rvm: &Rvm) -> Bundle {
    let bundle = Bundle::new(&["sleep", "10000"]);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    bundle
}

fn shell(rvm: &Rvm, script: &str) -> Finished {
    rvm.call(&["exec", "box", "sh", "-c", script])
}

fn end(rvm: &Rvm) {
    rvm.ok(&["delete", "--force", "box"]);
}

#[test]
fn a_program_runs_beside_the_first_and_its_output_and_exit_code_arrive() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let finished = shell(&rvm, "echo out; echo err >&2; exit 7");
    assert_eq!((finished.code, finished.stdout.as_str()), (7, "out\n"));
    assert_eq!(finished.stderr, "err\n");
    let list = shell(&rvm, "ps").stdout;
    assert!(list.contains("sleep 10000"), "{list}");
    assert_eq!(shell(&rvm, "kill -KILL $$").code, 137);
    assert_eq!(rvm.ok(&["exec", "box", "echo", "-n", "--debug"]), "--debug");

    let mut cat = rvm.command(&["exec", "box", "cat"]);
    cat.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = cat.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"to and fro")
        .unwrap();
    let output = command::wait(child);
    assert_eq!(output.stdout, b"to and fro");
    end(&rvm);
}

#[test]
fn what_cannot_be_executed_is_said_in_runcs_words() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    for (args, message) in [
        (
            &["box", "nothing"][..],
            "exec: \"nothing\": executable file not found in $PATH",
        ),
        (
            &["--cwd", "/nowhere", "box", "ls"],
            "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory",
        ),
        (
            &["box", "/etc"],
            "exec: \"/etc\": is a directory: permission denied",
        ),
    ] {
        let finished = rvm.call(&[&["exec"], args].concat());
        let expected = format!("exec failed: unable to start container process: {message}");
        assert_eq!(finished.code, 255);
        assert!(
            finished.stderr.starts_with(&expected),
            "{}",
            finished.stderr
        );
    }
    for (args, message) in [
        (&["box"][..], "process args cannot be empty"),
        (&["--user", "root", "box", "ls"], "bad uid \"root\""),
        (&["--process", "/nowhere", "box"], "/nowhere not found"),
        (&["--cgroup", "../x", "box", "ls"], "../x"),
        (&["--tty", "--detach", "box", "ls"], "cannot allocate tty"),
        (&["--tty", "box", "ls"], "terminal"),
        (&["nobox", "ls"], "container does not exist: nobox"),
    ] {
        let mut exec = rvm.command(&[&["exec"], args].concat());
        terminal::leave(&mut exec);
        let finished = finish(exec);
        assert_eq!(finished.code, 255, "{args:?}");
        assert!(finished.stderr.contains(message), "{}", finished.stderr);
    }
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    let finished = shell(&rvm, "true");
    assert_eq!(finished.code, 255);
    assert!(
        finished
            .stderr
            .contains("cannot exec in a stopped container")
    );
    end(&rvm);
}

#[test]
fn options_change_the_containers_process() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let script =
        "id -u; id -g; id -G; pwd; echo $A $TERM; grep -E 'CapBnd|NoNewPrivs' /proc/self/status";
    let options = [
        "--user",
        "5:6",
        "--additional-gids",
        "9",
        "-g",
        "10",
        "--cwd",
        "/tmp",
    ];
    let more = ["-e", "A=1", "--cap", "net_admin", "--no-new-privs=false"];
    let args = [&["exec"], &options[..], &more, &["box", "sh", "-c", script]].concat();
    let seen = rvm.ok(&args);
    // kill, net_bind_service, net_admin, audit_write
    let expected = "5\n6\n6 9 10\n/tmp\n1 xterm\nCapBnd:\t0000000020001420\n";
    assert!(seen.starts_with(expected), "{seen}");
    let finished = rvm.call(&["exec", "--cap", "CAP_FLY", "box", "true"]);
    let warning = "ignoring unknown capabilities: CAP_FLY";
    assert_eq!(finished.code, 0);
    assert!(finished.stderr.contains(warning), "{}", finished.stderr);
    end(&rvm);
}

#[test]
fn a_process_can_come_from_a_file() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let path = rvm.path("process.json");
    let process = json!({ "args": ["sh", "-c", "echo $WHAT; umask; exit 4"], "cwd": "/",
                          "env": ["PATH=/bin", "WHAT=file"], "user": { "uid": 1, "gid": 1, "umask": 0o077 } });
    std::fs::write(&path, process.to_string()).unwrap();
    let finished = rvm.call(&["exec", "-p", path.to_str().unwrap(), "box"]);
    assert_eq!(
        (finished.code, finished.stdout.as_str()),
        (4, "file\n0077\n")
    );
    let process = json!({ "args": ["/bin/id", "-u"], "cwd": "/" });
    std::fs::write(&path, process.to_string()).unwrap();
    assert_eq!(
        rvm.ok(&["exec", "-p", path.to_str().unwrap(), "box"]),
        "0\n"
    );
    end(&rvm);
}

#[test]
fn signals_to_exec_reach_its_program() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let script = "for s in HUP INT USR1 TERM; do trap \"echo $s\" $s; done; trap 'exit 5' ALRM; \
                  echo ready; while :; do sleep 0.05; done";
    let mut exec = rvm.command(&["exec", "box", "sh", "-c", script]);
    let mut child = exec.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    for (number, name) in [
        (libc::SIGHUP, "HUP"),
        (libc::SIGINT, "INT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGTERM, "TERM"),
    ] {
        command::signal(child.id() as i32, number);
        assert_eq!(lines.next().unwrap().unwrap(), name);
    }
    command::signal(child.id() as i32, libc::SIGALRM);
    assert_eq!(command::wait(child).status.code(), Some(5));
    end(&rvm);
}

#[test]
fn exec_ends_with_the_container_and_with_the_machine() {
    for how in ["kill", "machine"] {
        let rvm = Rvm::new();
        let _bundle = waiting(&rvm);
        let mut exec = rvm.command(&["exec", "box", "sh", "-c", "echo; exec sleep 10000"]);
        let mut child = exec.stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        if how == "kill" {
            rvm.ok(&["kill", "box", "KILL"]);
        } else {
            let state = std::fs::read_to_string(rvm.root().join("box/sandbox.json")).unwrap();
            let state: serde_json::Value = serde_json::from_str(&state).unwrap();
            let machine = state["machine"].as_array().unwrap();
            assert!(!machine.is_empty());
            for process in machine {
                command::signal(process["pid"].as_i64().unwrap() as i32, libc::SIGKILL);
            }
        }
        assert_eq!(command::wait(child).status.code(), Some(137), "{how}");
        end(&rvm);
    }
}

#[test]
fn a_detached_process_has_a_pid_on_the_host_and_its_exit_code() {
    let rvm = Rvm::new();
    let bundle = waiting(&rvm);
    let pid_file = rvm.path("pid");
    // As an engine does, this process adopts the orphan.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let script = "echo started; sleep 1; echo done > /tmp/done; exit 42";
    let mut exec = rvm.command(&["exec", "--detach", "--pid-file"]);
    exec.arg(&pid_file).args(["box", "sh", "-c", script]);
    let log = rvm.path("log");
    exec.stdout(File::create(&log).unwrap());
    assert!(exec.status().unwrap().success());
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let options = rustix::process::WaitOptions::empty();
    let pid = rustix::process::Pid::from_raw(pid);
    let (_, status) = rustix::process::waitpid(pid, options).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(42));
    assert!(bundle.rootfs("tmp/done").exists());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "started\n");

    let failed = rvm.call(&["exec", "--detach", "box", "nothing"]);
    assert_eq!(failed.code, 255);
    assert!(failed.stderr.contains("executable file not found in $PATH"));
    end(&rvm);
}

#[test]
fn a_terminal_of_the_users_is_the_programs() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let (mut terminal, line) = terminal::open(30, 90);
    let before = line.modes();
    let script = "trap 'stty size' WINCH; tty; stty size; while :; do sleep 0.1; done";
    let mut exec = rvm.command(&["exec", "--tty", "box", "sh", "-c", script]);
    line.attach(&mut exec);
    let child = exec.spawn().unwrap();
    terminal.expect("/dev/pts/0\r\n30 90\r\n");
    terminal.resize(40, 100);
    terminal.expect("40 100\r\n");
    // The guest's terminal acts on Ctrl-C.
    terminal.write("\x03");
    assert_eq!(command::wait(child).status.code(), Some(130));
    assert_eq!(line.modes(), before, "the terminal is as it was");
    // In a pipe a line ends with a line feed alone.
    let mut exec = rvm.command(&["exec", "--tty", "box", "stty", "size"]);
    line.attach(&mut exec);
    exec.stdout(Stdio::piped());
    let output = command::wait(exec.spawn().unwrap());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "40 100\n");
    end(&rvm);
}

#[test]
fn an_added_process_is_in_every_namespace_of_the_container_before_its_start_and_after() {
    let rvm = Rvm::new();
    let day = 86400;
    let bundle = Bundle::new(&["sleep", "10000"]).with(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] =
            json!({ "boottime": { "secs": day }, "monotonic": { "secs": day } });
    });
    rvm.create(&bundle, "box");
    let namespaces = |process: &str| {
        let list =
            "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/$n/ns/$n; done";
        let list = list.replacen("/proc/$n", &format!("/proc/{process}"), 1);
        shell(&rvm, &list).stdout
    };
    let is_offset = || {
        let uptime = shell(&rvm, "cut -d . -f 1 /proc/uptime").stdout;
        let uptime: u32 = uptime.trim().parse().unwrap();
        assert!((day..2 * day).contains(&uptime), "{uptime}");
    };
    is_offset();
    let before = namespaces("self");
    rvm.ok(&["start", "box"]);
    is_offset();
    let init = namespaces("1");
    assert_eq!(init.lines().count(), 8, "{init}");
    assert_eq!((&before, &namespaces("self")), (&init, &init));
    end(&rvm);
}

#[test]
fn an_engine_gets_a_terminal_and_a_pidfd() {
    let rvm = Rvm::new();
    let _bundle = waiting(&rvm);
    let console = Reception::new(rvm.path("console.sock"));
    let pidfd = Reception::new(rvm.path("pidfd.sock"));
    let mut exec = rvm.command(&["exec", "--detach", "--tty", "--console-socket"]);
    exec.arg(console.path())
        .arg("--pidfd-socket")
        .arg(pidfd.path());
    exec.args(["box", "sh", "-c", "read line; echo got $line"]);
    exec.stdout(Stdio::null()).stderr(Stdio::null());
    let child = exec.spawn().unwrap();
    let mut terminal = console.terminal();
    let (pidfd, name) = pidfd.receive();
    assert_eq!(name, b"pidfd");
    assert!(command::wait(child).status.success());
    terminal.write("there\n");
    terminal.expect("got there\r\n");
    // A pidfd is readable when its process has ended.
    let mut fds = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut fds, None), Ok(1));
    end(&rvm);
}

#[test]
fn fifty_at_a_time_lose_nothing_and_leave_nothing() {
    let rvm = Rvm::new();
    let bundle = waiting(&rvm);
    let processes = rvm.processes().len();
    let children: Vec<_> = (0..50)
        .map(|number| {
            let script = format!("seq 2000; echo {number}; echo {number} >&2; exit {number}");
            let mut exec = rvm.command(&["exec", "box", "sh", "-c", &script]);
            exec.stdout(Stdio::piped()).stderr(Stdio::piped());
            std::thread::spawn(move || Finished::from(command::wait(exec.spawn().unwrap())))
        })
        .collect();
    let lines: String = (1..=2000).map(|line| format!("{line}\n")).collect();
    for (number, child) in children.into_iter().enumerate() {
        let finished = child.join().unwrap();
        assert_eq!(finished.code, number as i32, "{}", finished.stderr);
        assert!(finished.stdout == format!("{lines}{number}\n"), "{number}");
        assert_eq!(finished.stderr, format!("{number}\n"));
    }
    let left = shell(&rvm, "set -- /proc/[0-9]*; echo $#").stdout;
    // The init process and the shell.
    assert_eq!(left, "2\n");
    eventually("the programs on the host have gone", || {
        rvm.processes().len() == processes
    });
    drop(bundle);
    end(&rvm);
}
