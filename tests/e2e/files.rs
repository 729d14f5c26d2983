//! What programs may expect of files, on a container's root and in a volume. `inside/files.rs` has
//! the claims; those that do not hold on the host itself are not claimed of the guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command};
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rvm_tests::{Bundle, Rvm, bind};
use serde_json::json;

const INSIDE: &str = env!("CARGO_BIN_EXE_rvm-inside");

/// What was found about each claim: nothing, or why it fails.
type Findings = BTreeMap<String, Option<String>>;

fn findings(output: &str) -> Findings {
    let finding = |line: &str| {
        if let Some(name) = line.strip_prefix("ok ") {
            return (name.to_owned(), None);
        }
        let failed = line.strip_prefix("failed ").expect(line);
        let (name, why) = failed.split_once(": ").expect(line);
        (name.to_owned(), Some(why.to_owned()))
    };
    output.lines().map(finding).collect()
}

fn of_host(dir: &Path) -> Findings {
    let output = Command::new(INSIDE).arg("files").arg(dir).output().unwrap();
    assert!(output.status.success());
    findings(&String::from_utf8(output.stdout).unwrap())
}

/// The claims that hold on the host and fail in the guest.
fn broken(host: &Findings, guest: &Findings) -> Vec<String> {
    assert!(host.keys().eq(guest.keys()), "{host:?} {guest:?}");
    let failing = guest.iter().filter_map(|(name, why)| {
        let why = why.as_ref().filter(|_| host[name].is_none())?;
        Some(format!("{name}: {why}"))
    });
    failing.collect()
}

/// A container that may do what a privileged one of runc may.
fn bundle(dir: &str) -> Bundle {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_MKNOD",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
    ];
    let bundle = Bundle::new(&["inside", "files", dir]).capabilities(&capabilities);
    let bundle = bundle.with(|config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    });
    fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
    fs::create_dir(bundle.rootfs("tmp/claims")).unwrap();
    bundle
}

#[test]
fn files_of_a_root_and_of_a_volume_behave_as_the_hosts() {
    let rvm = Rvm::new();
    let [on_host, volume] = ["host", "volume"].map(|name| rvm.path(name));
    for dir in [&on_host, &volume] {
        fs::create_dir(dir).unwrap();
    }
    let host = of_host(&on_host);
    for (id, dir) in [("root", "/tmp/claims"), ("volume", "/volume")] {
        let bundle = bundle(dir).mount(bind(&volume, "/volume", &["rbind"]));
        let run = rvm.run(&bundle, id);
        assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
        let broken = broken(&host, &findings(&run.stdout));
        assert!(broken.is_empty(), "{id}: {}", broken.join("\n"));
    }
}

/// How many lines each writer appends.
const LINES: usize = 200;

#[test]
fn lines_that_containers_and_the_host_append_are_all_kept() {
    let text = appended(false, 1);
    assert_eq!(text.lines().count(), 3 * LINES);
}

/// Most of them lie in two pages.
#[test]
fn long_lines_that_containers_and_the_host_append_are_not_torn() {
    let text = appended(false, 3000);
    assert_eq!(text.lines().count(), 3 * LINES);
}

/// By a descriptor that is not open for appending alone.
#[test]
fn a_call_that_appends_writes_behind_what_the_host_has_appended() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let log = volume.join("log");
    fs::write(&log, "").unwrap();
    let bundle = Bundle::new(&["inside", "append", "/volume/log"]);
    let bundle = bundle.mount(bind(&volume, "/volume", &["rbind"]));
    fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
    let mut child = rvm.spawn_piped(&bundle, "box");
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut stdin = child.stdin.take().unwrap();
    let mut host = File::options().append(true).open(&log).unwrap();
    let mut expected = String::new();
    for number in 1..=20 {
        // In one write each.
        let lines = [format!("guest {number}\n"), format!("host {number}\n")];
        stdin.write_all(lines[0].as_bytes()).unwrap();
        let mut done = String::new();
        stdout.read_line(&mut done).unwrap();
        assert_eq!(done, "done\n");
        host.write_all(lines[1].as_bytes()).unwrap();
        expected += &lines.concat();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(&log).unwrap(), expected);
}

/// It has nothing to cut off: none of it was written.
#[test]
fn a_direct_write_that_fails_keeps_what_the_host_has_appended() {
    assert_eq!(behind("direct"), "guest\nhost\n");
}

#[test]
fn what_the_host_appends_to_a_page_that_is_mapped_and_changed_is_kept() {
    assert_eq!(behind("stat"), "GUEST\nhost\n");
}

#[test]
fn a_file_that_grows_keeps_what_the_host_has_appended_to_a_page_that_is_mapped_and_changed() {
    let zeros = |count| "\0".repeat(count);
    assert_eq!(behind("truncate"), format!("GUEST\nhost\n{}", zeros(89)));
    assert_eq!(behind("write"), format!("GUEST\nhost\n{}tail", zeros(89)));
}

/// What a file has in it, to which the host appends a line before a program goes on that has opened
/// it when it had one line (`inside/behind.rs`).
fn behind(how: &str) -> String {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let path = volume.join("file");
    fs::write(&path, "guest\n").unwrap();
    let bundle = Bundle::new(&["inside", "behind", how, "/volume/file"]);
    let bundle = bundle.mount(bind(&volume, "/volume", &["rbind"]));
    fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
    let mut child = rvm.spawn_piped(&bundle, "box");
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut says = |expected: &str| {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    };
    says("ready");
    let mut host = File::options().append(true).open(&path).unwrap();
    host.write_all(b"host\n").unwrap();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    says("done");
    assert!(child.wait().unwrap().success());
    fs::read_to_string(&path).unwrap()
}

#[test]
fn a_log_that_the_host_truncates_has_every_later_line_and_no_holes() {
    assert!(appended(true, 1).lines().count() < 3 * LINES);
}

/// What two containers and the host have appended to a log, which the host may have truncated:
/// lines with numbers of so many digits. Those of each writer follow one another up to its last.
fn appended(truncated: bool, digits: usize) -> String {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let log = volume.join("log");
    fs::write(&log, "").unwrap();
    // One opens the file each time, the other keeps it open.
    let (numbers, line) = (
        format!("for i in $(seq {LINES})"),
        format!("%0{digits}d\\n"),
    );
    let each = format!("{numbers}; do printf 'each {line}' $i >>/volume/log; done");
    let held = format!("exec 3>>/volume/log; {numbers}; do printf 'held {line}' $i >&3; done");
    let _bundles = [("each", each), ("held", held)].map(|(id, command)| {
        let bundle = Bundle::shell(&command).mount(bind(&volume, "/volume", &["rbind"]));
        rvm.create(&bundle, id);
        bundle
    });
    for id in ["each", "held"] {
        rvm.ok(&["start", id]);
    }
    let mut host = File::options().append(true).open(&log).unwrap();
    for number in 1..=LINES {
        if truncated && number == LINES / 2 {
            host.set_len(0).unwrap();
        }
        // In one write, as the others do.
        let line = format!("host {number:0digits$}\n");
        host.write_all(line.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    for id in ["each", "held"] {
        rvm.wait_for_status(id, "stopped");
        rvm.ok(&["delete", id]);
    }
    let text = fs::read_to_string(&log).unwrap();
    for writer in ["each", "held", "host"] {
        let lines = text.lines().filter_map(|line| line.strip_prefix(writer));
        let numbers: Vec<usize> = lines.map(|number| number.trim().parse().unwrap()).collect();
        let first = LINES + 1 - numbers.len();
        let expected = first..=LINES;
        assert!(
            numbers.iter().copied().eq(expected),
            "{writer}: {numbers:?}"
        );
    }
    text
}

/// A container that locks the file `f` of a volume.
struct Locker {
    child: Child,
    stdout: BufReader<ChildStdout>,
    _bundle: Bundle,
}

impl Locker {
    fn start(rvm: &Rvm, id: &str, volume: &Path) -> Self {
        let bundle = Bundle::new(&["inside", "lock", "/volume/f"]).mount(bind(
            volume,
            "/volume",
            &["rbind"],
        ));
        fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
        let mut child = rvm.spawn_piped(&bundle, id);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            stdout,
            _bundle: bundle,
        }
    }

    fn says(&mut self, expected: &str) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn locks_hold_between_containers_and_the_host() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("f"), "").unwrap();
    let host = File::options()
        .read(true)
        .write(true)
        .open(volume.join("f"));
    let host = host.unwrap();
    for lock in [flock, fcntl_lock] {
        lock(&host, FlockOperation::LockExclusive).unwrap();
    }
    let mut first = Locker::start(&rvm, "first", &volume);
    first.says("busy");
    for lock in [flock, fcntl_lock] {
        lock(&host, FlockOperation::Unlock).unwrap();
    }
    first.says("locked");
    for lock in [flock, fcntl_lock] {
        let tried = lock(&host, FlockOperation::NonBlockingLockShared);
        assert_eq!(tried, Err(Errno::AGAIN));
    }
    let mut second = Locker::start(&rvm, "second", &volume);
    second.says("busy");
    first.end();
    second.says("locked");
    second.end();
    for lock in [flock, fcntl_lock] {
        lock(&host, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}

#[test]
fn a_program_that_waits_for_a_lock_can_be_killed() {
    let rvm = Rvm::new();
    let volume = rvm.path("volume");
    fs::create_dir(&volume).unwrap();
    let host = File::create(volume.join("f")).unwrap();
    flock(&host, FlockOperation::LockExclusive).unwrap();
    let command = "inside lock /volume/f & pid=$!; sleep 2; kill -9 $pid; wait $pid; echo $?";
    let bundle = Bundle::shell(command).mount(bind(&volume, "/volume", &["rbind"]));
    fs::copy(INSIDE, bundle.rootfs("bin/inside")).unwrap();
    let run = rvm.run(&bundle, "box");
    assert_eq!(run.stdout, "137\n", "{}", run.stderr);
}
