//! The system calls that QEMU must not make, beyond those that its own filter forbids.
//!
//! The calls that other versions of QEMU need are not known, so this is a deny list, and a listed
//! call fails with EPERM instead of killing the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::JailError;

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

/// The bit that selects the x32 variant of a call (__X32_SYSCALL_BIT).
const X32: libc::c_long = 0x4000_0000;

/// Applies the filter to the calling thread, and to what it executes.
pub fn apply() -> Result<(), JailError> {
    let program = compile().map_err(|e| JailError::Filter(e.into()))?;
    seccompiler::apply_filter(&program).map_err(JailError::Filter)
}

fn compile() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in FORBIDDEN {
        // A call without rules is always refused.
        rules.insert(*call, Vec::new());
        rules.insert(*call | X32, Vec::new());
    }
    for call in [libc::SYS_socket, libc::SYS_socket | X32] {
        rules.insert(call, vec![other_than_unix()?]);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Matches every socket family but AF_UNIX. AF_VSOCK, which may lead to the hypervisor below the
/// host, is in no network namespace, and QEMU needs none of the others.
fn other_than_unix() -> Result<SeccompRule, seccompiler::BackendError> {
    let unix = libc::AF_UNIX as u64;
    let family = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
    SeccompRule::new(vec![family])
}

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
