//! The system calls that QEMU must not make, beyond those that its own filter forbids.
//!
//! The calls that other versions of QEMU need are not known, so this is a deny list, and a listed
//! call fails with EPERM instead of killing the process.

use rvm_sys::seccomp::{Architecture, Comparison, Condition, Program, X32_BIT, X86_64};

use super::JailError;
use super::filter::load;

const FORBIDDEN: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Changes of files by name: QEMU serves none.
    libc::SYS_open_by_handle_at,
    libc::SYS_creat,
    libc::SYS_truncate,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // Parts of the kernel with a history of privilege escalation.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_modify_ldt,
    libc::SYS_personality,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_lookup_dcookie,
    libc::SYS_vmsplice,
    // The host itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Applies the filter to the calling thread, and to what it executes. The thread has no_new_privs,
/// as all do in the jail.
pub fn apply() -> Result<(), JailError> {
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut calls = Architecture {
        audit: X86_64,
        ..Architecture::default()
    };
    for number in FORBIDDEN.iter().flat_map(variants) {
        calls.calls.entry(number).or_default().always = Some(refused);
    }
    for number in variants(&libc::SYS_socket) {
        let rules = calls.calls.entry(number).or_default();
        rules.conditional.push((vec![OTHER_THAN_UNIX], refused));
    }
    load(&Program {
        default: libc::SECCOMP_RET_ALLOW,
        newer: libc::SECCOMP_RET_ALLOW,
        unknown_architecture: libc::SECCOMP_RET_KILL_PROCESS,
        architectures: vec![calls],
    })
}

/// A call's numbers: the usual one and that of x32.
fn variants(call: &libc::c_long) -> [u32; 2] {
    [*call as u32, *call as u32 | X32_BIT]
}

/// Matches every socket family but AF_UNIX. AF_VSOCK, which may lead to the hypervisor below the
/// host, is in no network namespace, and QEMU needs none of the others.
const OTHER_THAN_UNIX: Condition = Condition {
    argument: 0,
    comparison: Comparison::NotEqual,
    value: libc::AF_UNIX as u64,
    lower_half: false,
};

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};

    #[test]
    fn forbidden_calls_fail_and_others_work() {
        // A thread of its own keeps the filter from the other tests.
        let thread = std::thread::spawn(|| {
            apply().unwrap();
            let of = |family| socket(family, SocketType::STREAM, None).err();
            assert_eq!(of(AddressFamily::INET), Some(Errno::PERM));
            assert_eq!(of(AddressFamily::UNIX), None);
            assert_eq!(rustix::process::chroot("/").err(), Some(Errno::PERM));
        });
        thread.join().unwrap();
    }
}
