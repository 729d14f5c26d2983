//! System call filters, as the program in the guest meets them.

use rvm_tests::{Bundle, Rvm};
use serde_json::{Value, json};

/// A filter that denies what it does not list, or what it lists.
fn filter(action: &str, otherwise: &str, calls: &[&str]) -> Value {
    json!({
        "defaultAction": otherwise,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": calls, "action": action }],
    })
}

/// What busybox's echo calls, also as another user than root, and execve(2), which makes it.
const CALLS_OF_ECHO: &[&str] = &[
    "execve",
    "brk",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "readlink",
    "readlinkat",
    "getrandom",
    "mprotect",
    "prctl",
    "getuid",
    "getgid",
    "setgid",
    "setuid",
    "write",
    "newfstatat",
    "exit_group",
];

#[test]
fn a_filter_needs_to_allow_only_what_the_program_calls() {
    let rvm = Rvm::new();
    for (no_new_privileges, uid) in [(true, 0), (false, 0), (false, 1000)] {
        let bundle = Bundle::new(&["/bin/echo", "hello"]).with(|config| {
            config["process"]["user"] = json!({ "uid": uid, "gid": uid });
            config["process"]["noNewPrivileges"] = no_new_privileges.into();
            config["linux"]["seccomp"] =
                filter("SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", CALLS_OF_ECHO);
        });
        let finished = rvm.run(&bundle, "box");
        assert_eq!(finished.stdout, "hello\n", "{uid}: {finished:?}");
    }
}

#[test]
fn a_filter_that_denies_calls_of_the_set_up_stops_neither_a_start_nor_an_exec() {
    let rvm = Rvm::new();
    let denied = [
        "getcwd",
        "chdir",
        "capset",
        "capget",
        "setgroups",
        "setresuid",
        "setresgid",
        "umask",
        "prctl",
        "sched_setaffinity",
        "setrlimit",
        "prlimit64",
        "faccessat",
        "faccessat2",
        "sendmsg",
        "recvmsg",
        "seccomp",
        "keyctl",
        "mount",
        "setsid",
    ];
    let script = "grep -E 'Cap(Prm|Eff|Bnd)|Seccomp:' /proc/self/status";
    let bundle = Bundle::shell(&format!("{script}; exec sleep 1000")).with(|config| {
        config["process"]["noNewPrivileges"] = false.into();
        config["linux"]["seccomp"] = filter("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", &denied);
    });
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    // The three capabilities of the bundle, and a filter.
    let capabilities = "0000000020000420";
    let expected = format!(
        "CapPrm:\t{capabilities}\nCapEff:\t{capabilities}\nCapBnd:\t{capabilities}\nSeccomp:\t2\n"
    );
    let exec = rvm.ok(&["exec", "box", "sh", "-c", script]);
    assert_eq!(exec, expected);
    let user = rvm.ok(&["exec", "--user", "1000", "box", "sh", "-c", script]);
    assert!(user.contains("CapEff:\t0000000000000000"), "{user}");
    rvm.ok(&["delete", "--force", "box"]);
}
