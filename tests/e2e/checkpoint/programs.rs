//! Programs as users have them: of Python, sqlite and systemd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rvm_tests::bundle::bind;
use rvm_tests::command::{self, eventually};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

use super::{
    ROUNDS, count_through, end, numbers, restore, save, start, wait_for_more, world, world_for_long,
};

/// The Python of the host's Debian.
const PYTHON: &str = "/usr/bin/python3";

/// Counts as long as all goes on: four threads, a connection within the machine with a thread that
/// answers, a pair of sockets, a pipe and a file that was removed.
const BUSY: &str = r#"
import os, socket, threading, time

kept = open("/tmp/kept", "w+")
os.unlink("/tmp/kept")
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
near, far = socket.socketpair()
pipe = os.pipe()
counts = [0] * 4
lock = threading.Lock()

def count(number):
    while True:
        with lock:
            counts[number] += 1
        time.sleep(0.005)

def answer():
    while True:
        peer.sendall(peer.recv(100))

for number in range(4):
    threading.Thread(target=count, args=(number,), daemon=True).start()
threading.Thread(target=answer, daemon=True).start()
i = 0
while True:
    i += 1
    line = b"%d\n" % i
    client.sendall(line)
    assert client.recv(100) == line
    near.sendall(line)
    assert far.recv(100) == line
    os.write(pipe[1], line)
    assert os.read(pipe[0], 100) == line
    kept.write("%d\n" % i)
    kept.seek(0)
    assert kept.read().split() == [str(n) for n in range(1, i + 1)]
    before = list(counts)
    while any(now == then for now, then in zip(counts, before)):
        time.sleep(0.01)
    print(i, flush=True)
"#;

/// Counts the rows that it has inserted, and is in the middle of a transaction of twenty most of
/// the time.
const INSERT: &str = r#"
import sqlite3, sys, time

base = sqlite3.connect("/tmp/base", isolation_level=None)
base.execute("pragma journal_mode = " + sys.argv[1])
base.execute("create table t (n integer primary key, filler text)")
n = 0
while True:
    base.execute("begin immediate")
    for _ in range(20):
        n += 1
        base.execute("insert into t values (?, ?)", (n, "x" * 500))
        print(n, flush=True)
        time.sleep(0.02)
    base.execute("commit")
    assert base.execute("select count(*), max(n) from t").fetchone() == (n, n)
"#;

/// What sqlite says of the base in a file: whether it is sound, and how many rows it has.
const INSPECT: &str = r#"
import sqlite3, sys

base = sqlite3.connect(sys.argv[1])
print(base.execute("pragma integrity_check").fetchone()[0])
print(base.execute("select count(*) from t").fetchone()[0])
print(base.execute("select max(n) from t").fetchone()[0])
"#;

/// A bundle in which the host's Python runs a program. None if the host has no Python.
fn python(program: &str, arguments: &[&str]) -> Option<Bundle> {
    if !Path::new(PYTHON).exists() {
        println!("skipped: {PYTHON} is missing; the package python3 has it");
        return None;
    }
    let arguments = [&[PYTHON, "-I", "-S", "-B", "/program"], arguments].concat();
    let bundle = Bundle::new(&arguments).mount(bind(Path::new("/usr"), "/usr", &["rbind", "ro"]));
    fs::write(bundle.rootfs("program"), program).unwrap();
    fs::create_dir(bundle.rootfs("usr")).unwrap();
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), bundle.rootfs(name)).unwrap();
    }
    Some(bundle)
}

#[test]
fn a_python_process_goes_on_with_threads_sockets_and_a_file_that_was_removed() {
    let Some(rvm) = world() else { return };
    let Some(bundle) = python(BUSY, &[]) else {
        return;
    };
    let (output, _) = count_through(&rvm, &bundle, ROUNDS);
    wait_for_more(&output, 2);
    end(&rvm, "box");
}

#[test]
fn sqlite_goes_on_in_the_middle_of_a_transaction() {
    let Some(rvm) = world_for_long() else { return };
    for mode in ["wal", "delete"] {
        let Some(bundle) = python(INSERT, &[mode]) else {
            return;
        };
        let (output, before) = count_through(&rvm, &bundle, ROUNDS);
        wait_for_more(&output, 25);
        end(&rvm, "box");
        let printed = before + numbers(&output).len();
        let mut inspect = Command::new(PYTHON);
        inspect.args(["-c", INSPECT]).arg(bundle.rootfs("tmp/base"));
        let found = command::finish(inspect);
        let lines: Vec<&str> = found.stdout.lines().collect();
        let [state, rows, last] = lines[..] else {
            panic!("{mode}: {} {}", found.stdout, found.stderr);
        };
        assert_eq!((state, rows), ("ok", last), "{mode}");
        let rows: usize = rows.parse().unwrap();
        assert_eq!(
            rows % 20,
            0,
            "{mode}: a transaction is there whole or not at all"
        );
        assert!(
            (printed.saturating_sub(20)..=printed).contains(&rows),
            "{mode}: {rows}"
        );
    }
}

/// A bundle with systemd of Debian, as engines run it. None without its files.
fn systemd() -> Option<Bundle> {
    let Some(archive) = std::env::var_os("RVM_TEST_SYSTEMD") else {
        println!("skipped: RVM_TEST_SYSTEMD does not name what scripts/engines systemd makes");
        return None;
    };
    let bundle = Bundle::new(&["/sbin/init"]);
    fs::remove_dir_all(bundle.rootfs("")).unwrap();
    fs::create_dir(bundle.rootfs("")).unwrap();
    let mut unpack = Command::new("tar");
    unpack
        .arg("-C")
        .arg(bundle.rootfs(""))
        .arg("-xf")
        .arg(archive);
    assert!(unpack.status().unwrap().success());
    let capabilities: Vec<String> = ALL_CAPABILITIES
        .iter()
        .map(|it| format!("CAP_{it}"))
        .collect();
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let mut bundle = bundle.capabilities(&capabilities).with(|config| {
        config["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin", "container=oci"]);
        config["process"]["noNewPrivileges"] = json!(false);
        config["process"]["rlimits"] = json!([]);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    });
    bundle = bundle.mount(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"],
    }));
    for place in ["/run", "/run/lock", "/tmp"] {
        bundle = bundle.mount(json!({
            "destination": place, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"],
        }));
    }
    Some(bundle)
}

/// Those of a privileged container, see capabilities(7).
const ALL_CAPABILITIES: [&str; 29] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYS_RESOURCE",
    "SYS_TIME",
];

/// What systemctl says, whatever its exit code.
fn systemctl(rvm: &Rvm, arguments: &[&str]) -> String {
    let said = rvm.call(&[&["exec", "box", "systemctl"], arguments].concat());
    said.stdout.trim().to_owned()
}

#[test]
fn systemd_goes_on_with_its_units_and_starts_others() {
    let Some(rvm) = world_for_long() else { return };
    let Some(bundle) = systemd() else { return };
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    eventually("systemd has started everything", || {
        let state = systemctl(&rvm, &["is-system-running"]);
        ["running", "degraded"].contains(&state.as_str())
    });
    let before = systemctl(&rvm, &["is-system-running"]);
    let count = "i=0; while :; do i=$((i+1)); echo $i >/run/$0; sleep 0.1; done";
    let run = |unit: &str| {
        let unit_option = format!("--unit={unit}");
        let arguments = [
            "exec",
            "box",
            "systemd-run",
            &unit_option,
            "sh",
            "-c",
            count,
            unit,
        ];
        rvm.ok(&arguments);
    };
    let counted = |unit: &str| {
        let said = rvm.call(&["exec", "box", "cat", &format!("/run/{unit}")]);
        said.stdout.trim().parse::<u64>().unwrap_or(0)
    };
    run("first");
    eventually("the unit counts", || counted("first") > 0);
    for _ in 0..2 {
        save(&rvm, "box", &image, &[]);
        restore(&rvm, &bundle, &image, "box");
        let then = counted("first");
        eventually("the unit counts on", || counted("first") > then);
        assert_eq!(systemctl(&rvm, &["is-active", "first"]), "active");
        assert_eq!(systemctl(&rvm, &["is-system-running"]), before);
    }
    run("second");
    eventually("another unit counts", || counted("second") > 0);
    systemctl(&rvm, &["stop", "first"]);
    assert_eq!(systemctl(&rvm, &["is-active", "first"]), "inactive");
    end(&rvm, "box");
}
