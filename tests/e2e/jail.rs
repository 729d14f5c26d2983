//! An attacker who has taken over rvm-vmm, its back end or QEMU cannot get out of the jail.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rvm_tests::{Bundle, Rvm, command, leaks};
use serde_json::json;

/// How each attempt of tests/escape ended, by its name.
type Report = BTreeMap<String, String>;

/// Attempts that some hosts do not support, so that they fail without a jail too.
const OFTEN_IMPOSSIBLE: &[&str] = &[
    "connect by vsock",
    "load a BPF program",
    "open a file by its handle",
    "reach I/O ports",
];

/// A host with targets, and the attacking program in one mode.
struct Attack {
    /// Dropped before `rvm`, which looks for leftovers.
    _targets: (TcpListener, UnixListener, Victim),
    rvm: Rvm,
    program: PathBuf,
}

/// A process on the host.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Attack {
    fn new(mode: &str, engine: &str) -> Self {
        let rvm = Rvm::new().on_engine(engine);
        let program = rvm.path(&format!("escape-{mode}"));
        symlink(env!("CARGO_BIN_EXE_rvm-escape"), &program).unwrap();
        let secret = rvm.path("secret");
        fs::write(&secret, "secret").unwrap();

        let mut lo = Command::new("ip");
        lo.args(["link", "set", "lo", "up"]);
        rvm.adopt(&mut lo);
        assert!(lo.status().unwrap().success());
        let name = format!("rvm-escape-{}-{mode}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let (tcp, socket) = rvm.network().inside(|| {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            (tcp, UnixListener::bind_addr(&address).unwrap())
        });
        let victim = Victim(Command::new("sleep").arg("1000").spawn().unwrap());
        let host = json!({
            "pid": victim.0.id(),
            "tcp": tcp.local_addr().unwrap(),
            "socket": name,
            "key": add_key().as_bytes(),
            "handle": handle(&secret),
            "secret": secret,
        });
        fs::write(rvm.path("host.json"), host.to_string()).unwrap();
        // The attempts take long where software emulates the machine, and the program makes no
        // template.
        let lines = format!("vmm = {program:?}\nstart_timeout_seconds = 600\ntemplates = \"off\"");
        let rvm = rvm.configured(&lines);
        Self {
            rvm,
            program,
            _targets: (tcp, socket, victim),
        }
    }

    /// Runs the program without a jail.
    fn free(&self) -> Report {
        let mut free = Command::new(&self.program);
        free.arg("free");
        self.rvm.adopt(&mut free);
        let finished = command::finish(free);
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// Makes rvm start the program as it starts rvm-vmm. rvm's own caller has left a descriptor of
    /// the host's root open.
    fn jailed(&self) -> Report {
        let leaked = fs::File::open("/").unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let finished = self.rvm.run(&Bundle::new(&["true"]), "box");
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        let report = finished.stderr.find('{').zip(finished.stderr.rfind('}'));
        let (start, end) = report.unwrap_or_else(|| panic!("{}", finished.stderr));
        serde_json::from_str(&finished.stderr[start..=end]).unwrap()
    }
}

/// Adds a key to a session keyring that only this thread and its children have; returns its
/// description.
#[expect(unsafe_code, reason = "keyctl")]
fn add_key() -> CString {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    const SESSION: libc::c_int = -3;
    let none = std::ptr::null::<libc::c_char>();
    let (kind, description) = (c"user".as_ptr(), c"rvm-escape".to_owned());
    // SAFETY: the strings end in zero bytes, and the payload is one byte long.
    let key = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, none);
        let name = description.as_ptr();
        libc::syscall(libc::SYS_add_key, kind, name, c"x".as_ptr(), 1, SESSION)
    };
    assert!(key > 0, "{}", std::io::Error::last_os_error());
    description
}

/// A file's handle for open_by_handle_at(2); empty if its file system has none.
#[expect(unsafe_code, reason = "name_to_handle_at")]
fn handle(path: &Path) -> Vec<u8> {
    const HEADER: usize = 8;
    let mut handle = [0_u8; HEADER + libc::MAX_HANDLE_SZ as usize];
    handle[..4].copy_from_slice(&libc::MAX_HANDLE_SZ.to_ne_bytes());
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let mut mount = 0;
    // SAFETY: the handle's first field is the size of the buffer behind its header.
    let result = unsafe {
        let (handle, mount) = (handle.as_mut_ptr(), &raw mut mount);
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle,
            mount,
            0,
        )
    };
    let length = u32::from_ne_bytes(handle[..4].try_into().unwrap()) as usize;
    if result < 0 {
        Vec::new()
    } else {
        handle[..HEADER + length].to_vec()
    }
}

/// The attempts in a report that did not end as expected.
fn surprises(report: &Report, expected: impl Fn(&str, &str) -> bool) -> Vec<String> {
    assert!(report.len() > 20, "{report:#?}");
    report
        .iter()
        .filter(|(attempt, outcome)| !expected(attempt, outcome))
        .map(|(attempt, outcome)| format!("{attempt}: {outcome}"))
        .collect()
}

fn assert_nothing_works(mode: &str, engine: &str) {
    let report = Attack::new(mode, engine).jailed();
    let has_filters = mode != "qemu";
    let surprises = surprises(&report, |attempt, outcome| match attempt {
        _ if attempt.contains(": ") => outcome == "SIGSYS",
        // The file server acts as every user, root included, and its filter lets it.
        "become root" if has_filters => true,
        // Only the filter can stop it, and it did.
        "connect by vsock" if has_filters => true,
        _ => outcome != "done",
    });
    assert!(surprises.is_empty(), "{surprises:#?} of {report:#?}");
}

#[test]
fn without_a_jail_every_attempt_works() {
    let report = Attack::new("free", &rvm_tests::engine()).free();
    let surprises = surprises(&report, |attempt, outcome| {
        outcome == "done" || OFTEN_IMPOSSIBLE.contains(&attempt)
    });
    assert!(surprises.is_empty(), "{surprises:#?}");
}

#[test]
fn in_a_machines_place_nothing_works() {
    // The device is passed on and never used.
    if Path::new("/dev/kvm").exists() {
        assert_nothing_works("machine", "kvm");
    } else {
        println!("skipped: there is no /dev/kvm");
    }
}

#[test]
fn in_a_back_ends_place_nothing_works() {
    assert_nothing_works("backend", "qemu");
}

#[test]
fn in_qemus_place_nothing_works() {
    assert_nothing_works("qemu", "qemu");
}

/// The first of the ids of jailed processes.
const FIRST_OWN_ID: u32 = 0x7000_0000;

/// The capabilities of `rvm_vmm::jail::Caps::FileServer`.
const FILE_SERVER: u64 = 1 << 0 // CAP_CHOWN
    | 1 << 1 // CAP_DAC_OVERRIDE
    | 1 << 2 // CAP_DAC_READ_SEARCH
    | 1 << 3 // CAP_FOWNER
    | 1 << 4 // CAP_FSETID
    | 1 << 6 // CAP_SETGID
    | 1 << 7 // CAP_SETUID
    | 1 << 27 // CAP_MKNOD
    | 1 << 31; // CAP_SETFCAP

/// The processes that run the machine: a part of the command line, the capabilities, and the
/// entries at the root.
fn expected_processes() -> Vec<(&'static str, u64, &'static [&'static str])> {
    const SYSTEM: &[&str] = &["dev", "etc", "lib", "lib64", "proc", "usr"];
    match rvm_tests::engine().as_str() {
        "qemu" => vec![
            ("rvm-vmm backend", FILE_SERVER, &["box"]),
            ("qemu-system", 0, SYSTEM),
        ],
        _ => vec![("rvm-vmm machine", FILE_SERVER, &["box"])],
    }
}

#[test]
fn every_process_that_a_guest_can_reach_is_jailed() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    for (name, capabilities, root) in expected_processes() {
        let mut matching = rvm.processes();
        matching.retain(|pid| leaks::command_line(*pid).contains(name));
        let [pid] = matching[..] else {
            panic!("{name}: {matching:?}");
        };
        check_threads(name, pid, capabilities);
        for kind in ["user", "mnt", "pid", "ipc", "uts", "net", "cgroup"] {
            let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            let (own, host) = (namespace(pid), namespace(std::process::id().cast_signed()));
            assert_ne!(own, host, "{name}");
        }
        let entries = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        for found in names {
            assert!(root.contains(&found.as_str()), "{name} finds /{found}");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let limit = |what: &str| -> Vec<u64> {
            let line = limits.lines().find_map(|line| line.strip_prefix(what));
            let numbers = line.unwrap().split_whitespace().take(2);
            numbers.map(|number| number.parse().unwrap()).collect()
        };
        assert_eq!(limit("Max core file size"), [0, 0], "{name}");
        assert_eq!(limit("Max processes"), [512, 512], "{name}");
        let files = limit("Max open files");
        assert!(files[0] <= 524_288 && files[1] <= 524_288, "{files:?}");
    }
    rvm.ok(&["delete", "--force", "box"]);
}

fn check_threads(name: &str, pid: i32, capabilities: u64) {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = thread.unwrap().path().join("status");
        // A pool thread may have ended.
        let Ok(status) = fs::read_to_string(path) else {
            continue;
        };
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("{key} of {status}")).trim()
        };
        assert_eq!(field("NoNewPrivs:"), "1", "{name}: {status}");
        let ids = |key| -> Vec<u32> {
            let list = field(key).split_whitespace();
            list.map(|id| id.parse().unwrap()).collect()
        };
        for key in ["Uid:", "Gid:"] {
            let [real, effective, saved, _] = ids(key)[..] else {
                panic!("{status}");
            };
            // Only whoever serves files is root to them, and only with other ids beside.
            let serves = capabilities != 0 && field("CapEff:") != "0000000000000000";
            assert!(real >= FIRST_OWN_ID && saved == real, "{name}: {status}");
            assert!(effective == real || serves, "{name}: {status}");
        }
        assert_eq!(field("Groups:"), "", "{name}: {status}");
        assert_eq!(field("Seccomp:"), "2", "{name}: {status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let has = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(has & !capabilities, 0, "{name}: {status}");
        }
    }
}
