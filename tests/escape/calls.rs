//! System calls that no thread needs: each must kill the process.
use std::io;

use rvm_vmm::jails::ThreadKind;

use crate::{Report, outcome, syscall};

/// The arguments make the call harmless, or make it fail.
type Call = (&'static str, libc::c_long, [libc::c_long; 4]);

const NOWHERE: libc::c_long = 0;

const CALLS: &[Call] = &[
    // Files and programs.
    ("open", libc::SYS_open, [NOWHERE, 0, 0, 0]),
    ("creat", libc::SYS_creat, [NOWHERE, 0, 0, 0]),
    ("execve", libc::SYS_execve, [NOWHERE, 0, 0, 0]),
    ("execveat", libc::SYS_execveat, [-1, NOWHERE, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [NOWHERE, 0, 0, 0]),
    ("chroot", libc::SYS_chroot, [NOWHERE, 0, 0, 0]),
    (
        "socket(AF_INET)",
        libc::SYS_socket,
        [libc::AF_INET as _, libc::SOCK_STREAM as _, 0, 0],
    ),
    (
        "socket(AF_UNIX)",
        libc::SYS_socket,
        [libc::AF_UNIX as _, libc::SOCK_STREAM as _, 0, 0],
    ),
    (
        "socket(AF_VSOCK)",
        libc::SYS_socket,
        [libc::AF_VSOCK as _, libc::SOCK_STREAM as _, 0, 0],
    ),
    (
        "socketpair",
        libc::SYS_socketpair,
        [libc::AF_UNIX as _, libc::SOCK_STREAM as _, 0, NOWHERE],
    ),
    ("connect", libc::SYS_connect, [0, NOWHERE, 0, 0]),
    ("bind", libc::SYS_bind, [0, NOWHERE, 0, 0]),
    ("listen", libc::SYS_listen, [0, 1, 0, 0]),
    // Other processes.
    ("fork", libc::SYS_fork, [0; 4]),
    ("vfork", libc::SYS_vfork, [0; 4]),
    ("clone", libc::SYS_clone, [libc::SIGCHLD as _, 0, 0, 0]),
    (
        "clone(CLONE_NEWUSER)",
        libc::SYS_clone,
        [
            (libc::SIGCHLD | libc::CLONE_PIDFD | libc::CLONE_NEWUSER) as _,
            0,
            0,
            0,
        ],
    ),
    ("kill", libc::SYS_kill, [1, 0, 0, 0]),
    ("tkill", libc::SYS_tkill, [1, 0, 0, 0]),
    (
        "ptrace",
        libc::SYS_ptrace,
        [libc::PTRACE_SEIZE as _, 1, 0, 0],
    ),
    (
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        [1, NOWHERE, 0, NOWHERE],
    ),
    (
        "process_vm_writev",
        libc::SYS_process_vm_writev,
        [1, NOWHERE, 0, NOWHERE],
    ),
    ("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0, 0]),
    ("kcmp", libc::SYS_kcmp, [1, 1, 0, 0]),
    // Namespaces and mounts.
    (
        "unshare(CLONE_NEWUSER)",
        libc::SYS_unshare,
        [libc::CLONE_NEWUSER as _, 0, 0, 0],
    ),
    ("setns", libc::SYS_setns, [-1, 0, 0, 0]),
    ("mount", libc::SYS_mount, [NOWHERE, NOWHERE, NOWHERE, 0]),
    ("umount2", libc::SYS_umount2, [NOWHERE, 0, 0, 0]),
    ("pivot_root", libc::SYS_pivot_root, [NOWHERE, NOWHERE, 0, 0]),
    ("open_tree", libc::SYS_open_tree, [-1, NOWHERE, 0, 0]),
    (
        "move_mount",
        libc::SYS_move_mount,
        [-1, NOWHERE, -1, NOWHERE],
    ),
    ("fsopen", libc::SYS_fsopen, [NOWHERE, 0, 0, 0]),
    (
        "mount_setattr",
        libc::SYS_mount_setattr,
        [-1, NOWHERE, 0, NOWHERE],
    ),
    // The kernel.
    (
        "init_module",
        libc::SYS_init_module,
        [NOWHERE, 0, NOWHERE, 0],
    ),
    ("finit_module", libc::SYS_finit_module, [-1, NOWHERE, 0, 0]),
    ("delete_module", libc::SYS_delete_module, [NOWHERE, 0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, NOWHERE, 0]),
    ("bpf", libc::SYS_bpf, [0, NOWHERE, 0, 0]),
    (
        "perf_event_open",
        libc::SYS_perf_event_open,
        [NOWHERE, 0, -1, -1],
    ),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
    (
        "io_uring_setup",
        libc::SYS_io_uring_setup,
        [1, NOWHERE, 0, 0],
    ),
    ("add_key", libc::SYS_add_key, [NOWHERE; 4]),
    ("request_key", libc::SYS_request_key, [NOWHERE; 4]),
    ("keyctl", libc::SYS_keyctl, [0, -3, 0, 0]),
    ("iopl", libc::SYS_iopl, [3, 0, 0, 0]),
    ("ioperm", libc::SYS_ioperm, [0x80, 1, 1, 0]),
    ("modify_ldt", libc::SYS_modify_ldt, [0, NOWHERE, 0, 0]),
    ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
    ("syslog", libc::SYS_syslog, [10, NOWHERE, 0, 0]),
    ("reboot", libc::SYS_reboot, [0; 4]),
    ("clock_settime", libc::SYS_clock_settime, [0, NOWHERE, 0, 0]),
    ("sethostname", libc::SYS_sethostname, [NOWHERE, 0, 0, 0]),
    ("swapon", libc::SYS_swapon, [NOWHERE, 0, 0, 0]),
    ("quotactl", libc::SYS_quotactl, [-1, NOWHERE, 0, NOWHERE]),
    ("acct", libc::SYS_acct, [NOWHERE, 0, 0, 0]),
    (
        "lookup_dcookie",
        libc::SYS_lookup_dcookie,
        [0, NOWHERE, 0, 0],
    ),
    ("setrlimit", libc::SYS_setrlimit, [0, NOWHERE, 0, 0]),
    ("prlimit64", libc::SYS_prlimit64, [0, 0, NOWHERE, NOWHERE]),
    // Executable memory.
    (
        "mmap(PROT_EXEC)",
        libc::SYS_mmap,
        [0, 4096, libc::PROT_EXEC as _, libc::MAP_PRIVATE as _],
    ),
    (
        "mprotect(PROT_EXEC)",
        libc::SYS_mprotect,
        [0, 4096, libc::PROT_EXEC as _, 0],
    ),
    (
        "ioctl(TIOCSTI)",
        libc::SYS_ioctl,
        [0, libc::TIOCSTI as _, NOWHERE, 0],
    ),
    ("seccomp", libc::SYS_seccomp, [0, 0, NOWHERE, 0]),
];

/// What threads of one kind need after all. The file server writes a saved machine's state to a
/// file in memory; no thread can execute it.
const NEEDED: &[(ThreadKind, &str)] = &[(ThreadKind::Files, "memfd_create")];

/// Tries each call under the filter of a kind of thread.
pub fn run(kind: ThreadKind) -> Report {
    let mut report = Report::new();
    let calls = CALLS
        .iter()
        .filter(|(name, ..)| !NEEDED.contains(&(kind, name)));
    for (name, number, [a, b, c, d]) in calls {
        let outcome = outcome(|| {
            kind.apply()
                .map_err(|_| io::Error::from_raw_os_error(libc::ENOTSUP))?;
            syscall(*number, [*a, *b, *c, *d, 0])
        });
        report.insert(format!("{kind:?}: {name}"), outcome);
    }
    report
}
