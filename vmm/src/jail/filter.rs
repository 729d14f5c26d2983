//! The system calls that each kind of thread may make. Any other call kills the process.
//!
//! The lists were found by running every test with logging instead of killing; comments name what a
//! call is for. A thread applies its filter after its setup, so the calls of the setup (creating
//! threads, entering the jail, creating the machine) are not in them.

use std::io;

use rvm_sys::clone::COPY_FLAGS;
use rvm_sys::seccomp::{Architecture, Comparison, Condition, Program, X86_64, install};

use super::{Caps, JailError};

/// A kind of thread, by what it does after its setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The control socket and the devices that do not block.
    Main,
    /// As [`Self::Main`], and creates vCPUs, whose threads inherit its filter.
    MainWithCpuHotplug,
    /// Runs a vCPU.
    Vcpu,
    /// virtio-fs.
    Files,
    /// virtio-blk.
    Disk,
    /// virtio-net.
    Network,
    /// vsock, where it has a thread of its own.
    Vsock,
    /// The console's log, likewise.
    Console,
    /// Waits for a vhost-user front end, and talks to it.
    VhostUser,
}

/// The arguments with which a call is allowed.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// The argument with this index has one of these values.
    OneOf(u8, &'static [u64]),
    /// The argument with this index has none of these bits.
    Without(u8, u64),
    /// The call fails with ENOSYS, as in a kernel that does not have it.
    Missing,
}

type Rules = &'static [(libc::c_long, When)];

use When::{Always, Missing, OneOf, Without};

/// Memory, locks, time and exit.
const COMMON: Rules = &[
    (libc::SYS_brk, Always),
    (libc::SYS_mmap, Without(2, libc::PROT_EXEC as u64)),
    (libc::SYS_mprotect, Without(2, libc::PROT_EXEC as u64)),
    (libc::SYS_munmap, Always),
    (libc::SYS_mremap, Always),
    (libc::SYS_madvise, Always),
    (libc::SYS_futex, Always),
    (libc::SYS_sched_yield, Always),
    (libc::SYS_clock_gettime, Always),
    // Returning from signal handlers, and from stops by a debugger.
    (libc::SYS_rt_sigreturn, Always),
    (libc::SYS_restart_syscall, Always),
    (libc::SYS_sigaltstack, Always),
    // pthread_kill(3), and the end of a thread.
    (libc::SYS_rt_sigprocmask, Always),
    (libc::SYS_exit, Always),
    (libc::SYS_exit_group, Always),
    // Doorbells, interrupts, log lines.
    (libc::SYS_read, Always),
    (libc::SYS_write, Always),
    (libc::SYS_close, Always),
    // Debug builds check a descriptor before they close it.
    (libc::SYS_fcntl, OneOf(1, &[libc::F_GETFD as u64])),
    // Watches of host descriptors. A vCPU that starts or resets a device changes them too.
    (libc::SYS_epoll_ctl, Always),
];

/// Waiting for the events of devices.
const EPOLL: Rules = &[
    (libc::SYS_epoll_wait, Always),
    (libc::SYS_epoll_pwait, Always),
];

const MAIN: Rules = &[
    (libc::SYS_poll, Always),
    (libc::SYS_ppoll, Always),
    // The control socket.
    (libc::SYS_recvmsg, Always),
    (libc::SYS_sendmsg, Always),
    // virtio-rng.
    (libc::SYS_getrandom, Always),
    // Plugging and unplugging a network card, and the limiters of cards and disks.
    (libc::SYS_timerfd_create, Always),
    (libc::SYS_timerfd_settime, Always),
    (
        libc::SYS_ioctl,
        OneOf(1, &[KVM_IRQFD, KVM_IOEVENTFD, libc::TUNSETOFFLOAD]),
    ),
    // Plugging and unplugging memory.
    (libc::SYS_ioctl, OneOf(1, &[KVM_SET_USER_MEMORY_REGION])),
    // Saving the machine: what KVM keeps of it, and the memory that the guest has touched.
    (
        libc::SYS_ioctl,
        OneOf(1, &[KVM_GET_MSR_INDEX_LIST, KVM_GET_IRQCHIP, KVM_GET_CLOCK]),
    ),
    (libc::SYS_mincore, Always),
    // Kicking vCPUs.
    (libc::SYS_getpid, Always),
    (libc::SYS_tgkill, Always),
];

const VSOCK: Rules = &[
    (libc::SYS_poll, Always),
    (libc::SYS_ppoll, Always),
    (libc::SYS_accept4, Always),
    (libc::SYS_readv, Always),
    (libc::SYS_writev, Always),
    (libc::SYS_sendto, Always),
    (libc::SYS_recvfrom, Always),
    (libc::SYS_shutdown, Always),
    (libc::SYS_ioctl, OneOf(1, &[FIONBIO])),
];

const CONSOLE: Rules = &[(libc::SYS_lseek, Always), (libc::SYS_ftruncate, Always)];

const VCPU: Rules = &[
    (
        libc::SYS_ioctl,
        OneOf(
            1,
            &[KVM_RUN, libc::TUNSETOFFLOAD, KVM_GET_REGS, KVM_GET_SREGS],
        ),
    ),
    // Saving the machine.
    (libc::SYS_ioctl, OneOf(1, SAVE_VCPU_IOCTLS)),
    (libc::SYS_rt_sigtimedwait, Always),
    // A device closes its streams when the guest resets it. Output to the serial port.
    (libc::SYS_shutdown, Always),
    (libc::SYS_lseek, Always),
    (libc::SYS_ftruncate, Always),
];

/// Creating a thread. The flags of clone3(2) are in memory, where a filter cannot see them; without
/// it the C library takes clone(2).
const NEW_THREADS: Rules = &[
    (libc::SYS_clone3, Missing),
    (libc::SYS_clone, OneOf(0, &[THREAD_FLAGS])),
    (libc::SYS_set_robust_list, Always),
    (libc::SYS_rseq, Always),
    (libc::SYS_sched_getaffinity, Always),
    (libc::SYS_prctl, OneOf(0, &[libc::PR_SET_NAME as u64])),
];

/// With these pthread_create(3) calls clone(2): a thread of the process, and no namespaces.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// Writing a picture of the machine's memory, in a process that is a copy of this one: as much as a
/// process more may do of what this thread may, in the same namespaces, until this process ends.
const PICTURE: Rules = &[
    (libc::SYS_clone, OneOf(0, &[COPY_FLAGS])),
    // In the copy, first of all.
    (libc::SYS_close_range, Always),
    // The end of the copy: it is waited for, or killed if it takes too long. The descriptor of a
    // process comes from clone(2) alone.
    (libc::SYS_waitid, OneOf(0, &[libc::P_PIDFD as u64])),
    (libc::SYS_pidfd_send_signal, Always),
];

/// Creating a vCPU, whose thread applies a filter of its own.
const CPU_HOTPLUG: Rules = &[
    (libc::SYS_ioctl, OneOf(1, CREATE_VCPU_IOCTLS)),
    (libc::SYS_gettid, Always),
    (libc::SYS_capset, Always),
    (libc::SYS_seccomp, Always),
];

/// The ioctls that create a vCPU; the numbers are those of the kernel's linux/kvm.h.
const CREATE_VCPU_IOCTLS: &[u64] = &[
    0xae41,      // KVM_CREATE_VCPU
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0x4008_ae90, // KVM_SET_CPUID2
    0x41a0_ae8d, // KVM_SET_FPU
    0x4008_ae89, // KVM_SET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4004_ae8b, // KVM_SET_SIGNAL_MASK
];

/// The ioctls that read the state of a vCPU, beside its registers.
const SAVE_VCPU_IOCTLS: &[u64] = &[
    0x8004_ae98, // KVM_GET_MP_STATE
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x8400_ae8e, // KVM_GET_LAPIC
    0xc008_ae88, // KVM_GET_MSRS
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0xaea3,      // KVM_GET_TSC_KHZ
];

/// _IOWR(KVMIO, 0x02, struct kvm_msr_list)
const KVM_GET_MSR_INDEX_LIST: u64 = 0xc004_ae02;

/// _IOWR(KVMIO, 0x62, struct kvm_irqchip)
const KVM_GET_IRQCHIP: u64 = 0xc208_ae62;

/// _IOR(KVMIO, 0x7c, struct kvm_clock_data)
const KVM_GET_CLOCK: u64 = 0x8030_ae7c;

/// _IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

/// _IO(KVMIO, 0x80)
const KVM_RUN: u64 = 0xae80;

/// _IOR(KVMIO, 0x81, struct kvm_regs)
const KVM_GET_REGS: u64 = 0x8090_ae81;

/// _IOR(KVMIO, 0x83, struct kvm_sregs)
const KVM_GET_SREGS: u64 = 0x8138_ae83;

/// _IOW(KVMIO, 0x76, struct kvm_irqfd)
const KVM_IRQFD: u64 = 0x4020_ae76;

/// _IOW(KVMIO, 0x79, struct kvm_ioeventfd)
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// The calls of virtiofsd. Paths are below the jail's root, or relative to a descriptor below it.
const FILES: Rules = &[
    (libc::SYS_unshare, OneOf(0, &[libc::CLONE_FS as u64])),
    (libc::SYS_capget, Always),
    (libc::SYS_capset, Always),
    // Of libcap-ng: reading the bounding set and the ambient capabilities.
    (
        libc::SYS_prctl,
        OneOf(
            0,
            &[libc::PR_CAPBSET_READ as u64, libc::PR_CAP_AMBIENT as u64],
        ),
    ),
    (libc::SYS_setresuid, Always),
    (libc::SYS_setresgid, Always),
    (libc::SYS_setgroups, Always),
    (libc::SYS_geteuid, Always),
    (libc::SYS_getegid, Always),
    (libc::SYS_getpid, Always),
    (libc::SYS_gettid, Always),
    (libc::SYS_umask, Always),
    (libc::SYS_fchdir, Always),
    (libc::SYS_openat, Always),
    (libc::SYS_openat2, Always),
    (libc::SYS_open_by_handle_at, Always),
    (libc::SYS_name_to_handle_at, Always),
    // Changes by others, for the guest's inotify. The marks are of files that are open here.
    (libc::SYS_fanotify_init, Always),
    (libc::SYS_fanotify_mark, Always),
    (libc::SYS_dup, Always),
    // Saving a machine: virtiofsd writes its state to a file, here one in memory, and has a hash
    // map, which takes a random seed.
    (libc::SYS_memfd_create, Always),
    (libc::SYS_getrandom, Always),
    (libc::SYS_fcntl, OneOf(1, FILE_FCNTLS)),
    (libc::SYS_flock, Always),
    (libc::SYS_fstat, Always),
    (libc::SYS_newfstatat, Always),
    (libc::SYS_statx, Always),
    (libc::SYS_fstatfs, Always),
    (libc::SYS_faccessat, Always),
    (libc::SYS_faccessat2, Always),
    (libc::SYS_fchmod, Always),
    (libc::SYS_fchmodat, Always),
    (libc::SYS_fchownat, Always),
    (libc::SYS_utimensat, Always),
    (libc::SYS_ftruncate, Always),
    (libc::SYS_fallocate, Always),
    (libc::SYS_fsync, Always),
    (libc::SYS_fdatasync, Always),
    (libc::SYS_syncfs, Always),
    (libc::SYS_lseek, Always),
    (libc::SYS_pread64, Always),
    (libc::SYS_preadv, Always),
    (libc::SYS_preadv2, Always),
    (libc::SYS_pwrite64, Always),
    (libc::SYS_pwritev, Always),
    (libc::SYS_pwritev2, Always),
    (libc::SYS_copy_file_range, Always),
    (libc::SYS_getdents64, Always),
    (libc::SYS_readlinkat, Always),
    (libc::SYS_symlinkat, Always),
    (libc::SYS_linkat, Always),
    (libc::SYS_unlinkat, Always),
    (libc::SYS_mkdirat, Always),
    (libc::SYS_mknodat, Always),
    (libc::SYS_renameat, Always),
    (libc::SYS_renameat2, Always),
    (libc::SYS_getxattr, Always),
    (libc::SYS_setxattr, Always),
    (libc::SYS_listxattr, Always),
    (libc::SYS_removexattr, Always),
    (libc::SYS_fgetxattr, Always),
    (libc::SYS_fsetxattr, Always),
    (libc::SYS_flistxattr, Always),
    (libc::SYS_fremovexattr, Always),
    // The flags of files.
    (
        libc::SYS_ioctl,
        OneOf(
            1,
            &[
                0x8008_6601, // FS_IOC_GETFLAGS
                0x4008_6602, // FS_IOC_SETFLAGS
                0x801c_581f, // FS_IOC_FSGETXATTR
                0x401c_5820, // FS_IOC_FSSETXATTR
            ],
        ),
    ),
];

/// Locks of the guest's programs, and the threads that wait for them.
const FILE_LOCKS: Rules = &[
    (
        libc::SYS_fcntl,
        OneOf(
            1,
            &[
                libc::F_OFD_GETLK as u64,
                libc::F_OFD_SETLK as u64,
                libc::F_OFD_SETLKW as u64,
            ],
        ),
    ),
    // The signal that ends a wait.
    (libc::SYS_tgkill, Always),
];

/// Duplicating descriptors, and reading and setting their flags.
const FILE_FCNTLS: &[u64] = &[
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
];

const DISK: Rules = &[
    // The limiter.
    (libc::SYS_timerfd_settime, Always),
    (libc::SYS_preadv, Always),
    (libc::SYS_pwritev, Always),
    (libc::SYS_fdatasync, Always),
    (libc::SYS_fallocate, Always),
];

const NETWORK: Rules = &[
    (libc::SYS_writev, Always),
    // The limiter.
    (libc::SYS_timerfd_settime, Always),
];

/// Receiving the memory and the doorbells of the front end.
const VHOST_USER: Rules = &[
    (libc::SYS_accept4, Always),
    (libc::SYS_recvmsg, Always),
    (libc::SYS_sendmsg, Always),
    (libc::SYS_epoll_create1, Always),
    (libc::SYS_rt_sigaction, Always),
    (libc::SYS_fcntl, OneOf(1, FILE_FCNTLS)),
    (libc::SYS_dup, Always),
    (libc::SYS_ioctl, OneOf(1, &[FIONBIO])),
    (libc::SYS_eventfd2, Always),
    (libc::SYS_fstat, Always),
    (libc::SYS_fstatfs, Always),
    (libc::SYS_gettid, Always),
];

/// See ioctl_list(2).
const FIONBIO: u64 = 0x5421;

impl ThreadKind {
    fn rules(self) -> Vec<Rules> {
        match self {
            Self::Main => vec![COMMON, EPOLL, MAIN, PICTURE, VSOCK, CONSOLE],
            Self::MainWithCpuHotplug => {
                vec![
                    COMMON,
                    EPOLL,
                    MAIN,
                    PICTURE,
                    VSOCK,
                    CONSOLE,
                    VCPU,
                    NEW_THREADS,
                    CPU_HOTPLUG,
                ]
            }
            Self::Vcpu => vec![COMMON, VCPU],
            Self::Files => vec![COMMON, EPOLL, FILES, FILE_LOCKS, NEW_THREADS],
            Self::Disk => vec![COMMON, EPOLL, DISK],
            Self::Network => vec![COMMON, EPOLL, NETWORK],
            Self::Vsock => vec![COMMON, EPOLL, VSOCK],
            Self::Console => vec![COMMON, CONSOLE],
            // The library creates one of its threads after the filter was applied.
            Self::VhostUser => vec![COMMON, EPOLL, VHOST_USER, NEW_THREADS],
        }
    }

    /// Applies the filter to the calling thread, and to the threads that it creates later. The
    /// thread has no_new_privs, as all do in the jail. Only the file server's threads keep
    /// capabilities, and are root to the files.
    pub fn apply(self) -> Result<(), JailError> {
        self.caps().keep_in_thread()?;
        load(&self.program())
    }

    fn caps(self) -> Caps {
        match self {
            Self::Files => Caps::FileServer,
            _ => Caps::None,
        }
    }

    fn program(self) -> Program {
        let mut calls = Architecture {
            audit: X86_64,
            ..Architecture::default()
        };
        for &(call, when) in self.rules().into_iter().flatten() {
            let rules = calls.calls.entry(call as u32).or_default();
            match when.conditions() {
                None => rules.always = Some(when.action()),
                Some(allowed) => {
                    let allowed = allowed.into_iter();
                    let allowed = allowed.map(|one| (vec![one], libc::SECCOMP_RET_ALLOW));
                    rules.conditional.extend(allowed);
                }
            }
        }
        Program {
            default: libc::SECCOMP_RET_KILL_PROCESS,
            newer: libc::SECCOMP_RET_KILL_PROCESS,
            unknown_architecture: libc::SECCOMP_RET_KILL_PROCESS,
            architectures: vec![calls],
        }
    }
}

/// Applies a filter to the calling thread, and to what it creates and executes.
pub(super) fn load(program: &Program) -> Result<(), JailError> {
    let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
    let instructions = program.assemble().ok_or_else(too_large);
    let installed = instructions.and_then(|code| Ok(install(&code, 0)?));
    installed.map_err(JailError::Filter)
}

impl When {
    fn action(self) -> u32 {
        match self {
            Missing => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
            Always | OneOf(..) | Without(..) => libc::SECCOMP_RET_ALLOW,
        }
    }

    /// The conditions of which one must hold; None if there are none. Only the low 32 bits of an
    /// argument are compared with a value: the kernel, too, ignores the others.
    fn conditions(self) -> Option<Vec<Condition>> {
        let condition = |argument, mask, value| Condition {
            argument,
            comparison: Comparison::MaskedEqual(mask),
            value,
            lower_half: false,
        };
        match self {
            Always | Missing => None,
            OneOf(argument, values) => {
                let low = u64::from(u32::MAX);
                let values = values.iter();
                Some(
                    values
                        .map(|&value| condition(argument, low, value))
                        .collect(),
                )
            }
            Without(argument, bits) => Some(vec![condition(argument, bits, 0)]),
        }
    }
}

#[cfg(test)]
mod tests;
