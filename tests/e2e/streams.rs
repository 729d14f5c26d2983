//! Standard streams and terminals.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::{Bundle, Rvm, command};

#[test]
fn input_reaches_the_program_and_its_end_too() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("cat; echo end");
    let mut child = rvm.spawn_piped(&bundle, "box");
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = command::wait(child);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nend\n");
}

#[test]
fn a_null_input_is_the_null_device() {
    let rvm = Rvm::new();
    let finished = rvm.run(&Bundle::shell("readlink /proc/self/fd/0"), "box");
    assert_eq!(finished.stdout, "/dev/null\n");
}

#[test]
fn a_writer_hears_that_nobody_reads() {
    let rvm = Rvm::new();
    // `yes` ends by SIGPIPE, and only then.
    let bundle = Bundle::shell("yes; echo $? > /tmp/status");
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box").stdout(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert!(command::wait(child).status.success());
    assert!(bundle.rootfs("tmp/status").exists());
}

/// Closes standard output, then when told the rest, and runs on.
const CLOSING: &str = "echo out; exec >&-; while ! [ -e /tmp/go ]; do sleep 0.1; done; \
                       echo err >&2; exec 2>&- <&-; rm /tmp/go; exec sleep 1000";

/// Runs rvm, whose process does what [`CLOSING`] says, and follows its streams. Returns rvm.
fn see_streams_close(rvm: &Rvm, mut command: Command, bundle: &Bundle) -> Child {
    command.stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let stdout = child.stdout.take();
    stdout.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\n");
    std::fs::write(bundle.rootfs("tmp/go"), "").unwrap();
    text.clear();
    let stderr = child.stderr.take();
    stderr.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "err\n");
    let mut stdin = child.stdin.take().unwrap();
    command::eventually("a writer hears that standard input is closed", || {
        let written = stdin.write(b"x");
        written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
    });
    assert_eq!(rvm.status("box"), "running");
    child
}

#[test]
fn what_a_container_closes_is_closed_for_the_caller() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell(CLOSING);
    for detach in [true, false] {
        let mut run = rvm.command(&["run", "--bundle"]);
        run.arg(bundle.write()).arg("box");
        if detach {
            run.arg("--detach");
        }
        let child = see_streams_close(&rvm, run, &bundle);
        rvm.ok(&["kill", "box", "KILL"]);
        assert_eq!(command::wait(child).status.success(), detach);
        if detach {
            rvm.wait_for_status("box", "stopped");
            rvm.ok(&["delete", "box"]);
        }
    }
}

#[test]
fn what_an_added_process_closes_is_closed_for_the_caller() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    for options in [&["exec", "--detach"][..], &["exec"]] {
        let mut exec = rvm.command(options);
        exec.args(["box", "sh", "-c", CLOSING]);
        let mut child = see_streams_close(&rvm, exec, &bundle);
        // It ends with its container, if it has not ended already.
        if options.len() == 1 {
            rvm.ok(&["delete", "--force", "box"]);
        }
        child.wait().unwrap();
    }
}

/// The size of large transfers. `make bench` measures rates.
fn volume() -> u64 {
    let mib = std::env::var("RVM_TEST_STREAM_MIB")
        .ok()
        .and_then(|text| text.parse().ok());
    mib.unwrap_or(64) << 20
}

/// A stream of bytes with a period of 2^64.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[test]
fn a_large_stream_passes_both_ways_unchanged() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["cat"]);
    let mut child = rvm.spawn_piped(&bundle, "box");
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let volume = volume();
    let writer = std::thread::spawn(move || {
        let mut noise = Noise(1);
        let mut buffer = vec![0; 1 << 16];
        for _ in 0..volume >> 16 {
            noise.fill(&mut buffer);
            stdin.write_all(&buffer).unwrap();
        }
    });
    let mut noise = Noise(1);
    let (mut expected, mut received) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for block in 0..volume >> 16 {
        noise.fill(&mut expected);
        stdout.read_exact(&mut received).unwrap();
        assert!(expected == received, "block {block}");
    }
    assert_eq!(stdout.read(&mut received).unwrap(), 0);
    writer.join().unwrap();
    assert!(command::wait(child).status.success());
}

#[test]
fn a_slow_reader_stalls_the_writer_and_loses_nothing() {
    let rvm = Rvm::new();
    // Far more than all buffers on the way.
    let bundle = Bundle::shell("dd if=/dev/zero bs=65536 count=512 2>/dev/null; echo > /tmp/done");
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box").stdout(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!bundle.rootfs("tmp/done").exists(), "the writer waits");
    let before: u64 = rvm.processes().iter().map(|pid| anonymous_kib(*pid)).sum();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 512 * 65536 - 1);
    assert!(command::wait(child).status.success());
    assert!(before > 0, "the processes were there to be measured");
}

/// The private anonymous memory of a process, without the guest's.
fn anonymous_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

#[test]
fn memory_stays_flat_while_a_stream_passes() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("dd if=/dev/zero bs=65536 count=1024 2>/dev/null");
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write()).arg("box").stdout(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let monitor = child.id() as i32;
    let mut stdout = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 16];
    stdout.read_exact(&mut buffer).unwrap();
    let before = anonymous_kib(monitor);
    let mut most = before;
    while stdout.read(&mut buffer).unwrap() > 0 {
        most = most.max(anonymous_kib(monitor));
    }
    assert!(
        most < before + 1024,
        "the monitor grew from {before} to {most} KiB"
    );
    command::wait(child);
}

#[test]
fn a_program_whose_output_nobody_wants_ends_on_time() {
    let rvm = Rvm::new();
    let start = Instant::now();
    let bundle = Bundle::shell("echo unread");
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write())
        .arg("box")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(run.status().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(120));
}

mod at_a_terminal {
    use super::*;
    use rvm_tests::terminal::{self, Reception};
    use serde_json::json;

    fn bundle(script: &str) -> Bundle {
        Bundle::shell(script).with(|config| config["process"]["terminal"] = true.into())
    }

    #[test]
    fn of_the_user() {
        let rvm = Rvm::new();
        let (mut terminal, line) = terminal::open(30, 90);
        let before = line.modes();
        let script = "trap 'stty size' WINCH; tty; stty size; read line; echo got $line; \
                      while :; do sleep 0.1; done";
        let bundle = bundle(script);
        let mut run = rvm.command(&["run", "--bundle"]);
        run.arg(bundle.write()).arg("box");
        line.attach(&mut run);
        let child = run.spawn().unwrap();
        terminal.expect("/dev/pts/0\r\n30 90\r\n");
        terminal.write("line\r");
        // The guest's terminal echoes, and the host's does not.
        let seen = terminal.expect("got line\r\n");
        assert_eq!(seen.matches("line\r\n").count(), 2, "{seen:?}");
        terminal.resize(40, 100);
        terminal.expect("40 100\r\n");
        // The guest's terminal acts on Ctrl-C.
        terminal.write("\x03");
        assert_eq!(command::wait(child).status.code(), Some(130));
        assert_eq!(line.modes(), before, "the terminal is as it was");
    }

    #[test]
    fn of_an_engine() {
        let rvm = Rvm::new();
        let socket = Reception::new(rvm.path("console.sock"));
        // For a while nobody has the terminal open, as with systemd's console.
        let script = "stty size; read line; echo got $line; exec </dev/null >/dev/null 2>&1; \
                      sleep 1; echo back >/dev/console; exit 9";
        let bundle = bundle(script);
        let mut create = rvm.command(&["create", "--console-socket"]);
        create
            .arg(socket.path())
            .arg("--bundle")
            .arg(bundle.write());
        create
            .arg("box")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = create.spawn().unwrap();
        let mut terminal = socket.terminal();
        terminal.resize(25, 70);
        assert!(command::wait(child).status.success());
        rvm.ok(&["start", "box"]);
        terminal.expect("70\r\n");
        terminal.write("there\n");
        terminal.expect("got there\r\n");
        terminal.expect("back\r\n");
        rvm.wait_for_status("box", "stopped");
        rvm.ok(&["delete", "box"]);
    }

    #[test]
    fn of_an_engine_that_sets_no_size_has_the_configured_one() {
        let rvm = Rvm::new();
        let socket = Reception::new(rvm.path("console.sock"));
        let bundle = bundle("read line; stty size; exec sleep 100").with(|config| {
            config["process"]["consoleSize"] = json!({ "height": 10, "width": 110 });
        });
        let mut run = rvm.command(&["run", "--detach", "--console-socket"]);
        run.arg(socket.path()).arg("--bundle").arg(bundle.write());
        run.arg("box").stdout(Stdio::null()).stderr(Stdio::null());
        let child = run.spawn().unwrap();
        let mut terminal = socket.terminal();
        assert!(command::wait(child).status.success());
        terminal.write("now\n");
        terminal.expect("10 110\r\n");
        rvm.ok(&["delete", "--force", "box"]);
    }

    #[test]
    fn that_is_not_there_is_refused() {
        let rvm = Rvm::new();
        let finished = rvm.run(&bundle("true"), "box");
        assert_eq!(finished.code, 1);
        let message = finished.stderr;
        assert!(message.contains("process.terminal"), "{message}");
    }
}
