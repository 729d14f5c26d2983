//! `run` in the foreground: streams, terminals, exit codes, messages.

use std::io::Write;
use std::process::Stdio;

use rvm_tests::command;
use rvm_tests::engine::session::Session;
use rvm_tests::engine::{Runtime, runtime};

use crate::engine;

#[test]
fn what_a_program_writes_comes_out_by_stream_and_its_exit_code_too() {
    let finished = engine().run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(finished.stdout, "out\n");
    assert_eq!(finished.stderr, "err\n");
    assert_eq!(finished.code, 7);
}

#[test]
fn input_reaches_a_program_and_its_end_too() {
    let mut run = engine().run_command(&["--interactive"], &["sh", "-c", "cat; echo end"]);
    run.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = command::wait(child);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nend\n");
}

#[test]
fn a_terminal_echoes_has_a_size_and_passes_its_keys() {
    let script = "trap 'stty size' WINCH; tty; stty size; while [ -z \"$line\" ]; do read line; done; echo got $line; \
                  while :; do sleep 0.1; done";
    let run = engine().run_command(&["--interactive", "--tty"], &["sh", "-c", script]);
    let mut terminal = Session::spawn(run, 30, 90);
    terminal.expect("/dev/pts/0\r\n");
    terminal.expect("30 90\r\n");
    terminal.write("line\r");
    // Echoed once, by the container's terminal only.
    let seen = terminal.expect("got line\r\n");
    assert_eq!(seen.matches("line\r\n").count(), 2, "{seen:?}");
    terminal.resize(40, 100);
    terminal.expect("40 100\r\n");
    terminal.write("\x03");
    assert_eq!(terminal.wait(), Some(130));
}

#[test]
fn death_by_a_signal_is_128_and_the_signal() {
    // The init returns its child's exit code.
    let finished = engine().run(&["--init"], &["sh", "-c", "kill -KILL $$"]);
    assert_eq!(finished.code, 137, "{}", finished.stderr);
}

#[test]
fn a_program_that_does_not_exist_is_127_and_named() {
    let finished = engine().run(&[], &["/no/such/program"]);
    assert_eq!(finished.code, 127, "{}", finished.stderr);
    assert!(
        finished.stderr.contains("/no/such/program"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("no such file or directory"),
        "{}",
        finished.stderr
    );
    let finished = engine().run(&[], &["nosuchprogram"]);
    assert_eq!(finished.code, 127, "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("executable file not found in $PATH"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_file_that_cannot_be_executed_is_126_and_named() {
    let finished = engine().run(&[], &["/etc/passwd"]);
    assert_eq!(finished.code, 126, "{}", finished.stderr);
    assert!(
        finished.stderr.contains("permission denied"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_working_directory_that_is_a_file_is_126_and_named() {
    let finished = engine().run(&["--workdir", "/etc/passwd"], &["true"]);
    assert!(
        [125, 126, 127].contains(&finished.code),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("/etc/passwd"),
        "{}",
        finished.stderr
    );
}

#[test]
fn an_option_that_the_engine_refuses_is_125() {
    assert_eq!(engine().run(&["--nosuchoption"], &["true"]).code, 125);
}

#[test]
fn the_kernel_is_the_guests() {
    let inside = engine().run(&[], &["uname", "-r"]).stdout;
    let host = rustix::system::uname();
    let is_the_hosts = inside.trim() == host.release().to_string_lossy();
    assert_eq!(is_the_hosts, runtime() == Runtime::Runc, "{inside}");
}
