//! The lists of system calls. Each row says what its call is for and which engine's tests see it
//! used; `tests/used-rules` fails for a row that they do not.

use rvm_sys::clone::COPY_FLAGS;

use super::When::{Always, Missing, OneOf, Without};
use super::Why::{Both, Kvm, Qemu, Seldom};
use super::{Rule, Rules};

macro_rules! rules {
    ($($call:ident $when:expr, $why:expr;)*) => {
        &[$(Rule { call: libc::$call, when: $when, why: $why }),*]
    };
}

/// Memory, locks, time and exit.
pub(super) const COMMON: Rules = rules! {
    SYS_brk Always, Both("the C library's heap grows and shrinks");
    SYS_mmap Without(2, libc::PROT_EXEC as u64), Both("memory, and stacks of threads");
    SYS_mprotect Without(2, libc::PROT_EXEC as u64), Both("the guard page of a stack");
    SYS_munmap Always, Both("the end of what mmap gave");
    SYS_mremap Always, Both("a large vector grows");
    SYS_madvise Always, Both("memory given back: a thread's stack, a page of the guest");
    SYS_futex Always, Both("locks and conditions");
    SYS_sched_yield Always, Seldom("a lock of the standard library is contended");
    SYS_clock_gettime Always, Seldom("a host whose clock the vDSO cannot read");
    SYS_rt_sigreturn Always, Both("the end of a signal's handler");
    SYS_restart_syscall Always, Seldom("a wait goes on after SIGSTOP or a debugger's stop");
    SYS_sigaltstack Always, Both("a thread of the standard library ends");
    SYS_rt_sigprocmask Always, Both("pthread_kill(3), and the end of a thread");
    SYS_exit Always, Both("a thread ends");
    SYS_exit_group Always, Kvm("the process ends; the back end's, too");
    SYS_read Always, Both("doorbells, events, streams");
    SYS_write Always, Both("interrupts, log lines, streams");
    SYS_close Always, Both("descriptors");
    SYS_fcntl OneOf(1, &[libc::F_GETFD as u64]),
        Seldom("debug builds check a descriptor before they close it");
    SYS_epoll_ctl Always,
        Both("watches of descriptors; a vCPU that starts or resets a device changes them too");
};

/// Waiting for the events of devices.
pub(super) const EPOLL: Rules = rules! {
    SYS_epoll_wait Always, Both("a thread waits for its devices' events");
    SYS_epoll_pwait Always, Both("the same, by rustix and by vhost-user's library");
};

pub(super) const MAIN: Rules = rules! {
    SYS_ppoll Always, Kvm("waiting for the control socket");
    SYS_recvmsg Always, Kvm("the control socket");
    SYS_sendmsg Always, Kvm("the control socket");
    SYS_getrandom Always, Kvm("virtio-rng");
    SYS_timerfd_create Always, Kvm("the limiter of a plugged card or disk");
    SYS_timerfd_settime Always, Kvm("the same");
    SYS_ioctl OneOf(1, &[KVM_IRQFD, KVM_IOEVENTFD]), Kvm("plugging and unplugging a device");
    SYS_ioctl OneOf(1, &[libc::TUNSETOFFLOAD]), Kvm("resetting a network card");
    SYS_ioctl OneOf(1, &[KVM_SET_USER_MEMORY_REGION]), Kvm("plugging and unplugging memory");
    SYS_ioctl OneOf(1, &[KVM_GET_MSR_INDEX_LIST, KVM_GET_IRQCHIP, KVM_GET_CLOCK]),
        Kvm("saving what KVM keeps of a machine");
    SYS_mincore Always, Kvm("saving the memory that the guest has touched");
    SYS_getpid Always, Kvm("kicking a vCPU");
    SYS_tgkill Always, Kvm("the same");
};

pub(super) const VSOCK: Rules = rules! {
    SYS_ppoll Always, Kvm("whether the host's end of a stream is closed");
    SYS_accept4 Always, Both("the host connects");
    SYS_readv Always, Both("streams");
    SYS_writev Always, Both("streams");
    SYS_sendto Always, Both("a stream's first bytes");
    SYS_recvfrom Always, Both("a stream's first bytes");
    SYS_shutdown Always, Both("one direction of a stream ends");
};

pub(super) const CONSOLE: Rules = rules! {
    SYS_lseek Always, Both("the console's log starts again at its beginning");
    SYS_ftruncate Always, Both("the same");
};

pub(super) const VCPU: Rules = rules! {
    SYS_ioctl OneOf(1, &[KVM_RUN]), Kvm("the guest runs");
    SYS_ioctl OneOf(1, &[libc::TUNSETOFFLOAD]), Kvm("the guest sets a network card's features");
    SYS_ioctl OneOf(1, &[KVM_GET_REGS, KVM_GET_SREGS]), Kvm("saving a machine");
    SYS_ioctl OneOf(1, SAVE_VCPU_IOCTLS), Kvm("saving a machine");
    SYS_rt_sigtimedwait Always, Kvm("taking the signal that kicked it");
    SYS_statx Always, Kvm("whether a shared file has changed");
    SYS_shutdown Always, Kvm("the guest resets vsock, which closes its streams");
    SYS_lseek Always, Kvm("output to the serial port, when the log starts again");
    SYS_ftruncate Always, Kvm("the same");
};

/// Creating a thread.
pub(super) const NEW_THREADS: Rules = rules! {
    // Its flags are in memory, where a filter cannot see them.
    SYS_clone3 Missing, Both("pthread_create(3), which takes clone(2) then");
    SYS_clone OneOf(0, &[THREAD_FLAGS]), Both("pthread_create(3)");
    SYS_set_robust_list Always, Both("a thread begins");
    SYS_rseq Always, Both("a thread begins");
    SYS_sched_getaffinity Always, Both("the standard library asks for its stack's bounds");
    SYS_prctl OneOf(0, &[libc::PR_SET_NAME as u64]), Both("a thread's name");
};

/// With these pthread_create(3) calls clone(2): a thread of the process, and no namespaces.
pub(super) const THREAD_FLAGS: u64 = (libc::CLONE_VM
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
pub(super) const PICTURE: Rules = rules! {
    SYS_clone OneOf(0, &[COPY_FLAGS]), Kvm("the copy begins");
    SYS_close_range Always, Kvm("the copy closes what it does not write to");
    // The descriptor of a process comes from clone(2) alone.
    SYS_waitid OneOf(0, &[libc::P_PIDFD as u64]), Kvm("the copy has ended");
    SYS_pidfd_send_signal Always, Kvm("killing a copy that takes too long, or that nobody wants");
};

/// Creating a vCPU, whose thread applies a filter of its own.
pub(super) const CPU_HOTPLUG: Rules = rules! {
    SYS_ioctl OneOf(1, CREATE_VCPU_IOCTLS), Kvm("a vCPU is plugged");
    SYS_gettid Always, Kvm("its thread takes a signal");
    SYS_capset Always, Kvm("its thread gives up capabilities");
    SYS_seccomp Always, Kvm("its thread applies its filter");
};

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
pub(super) const KVM_RUN: u64 = 0xae80;

/// _IOR(KVMIO, 0x81, struct kvm_regs)
const KVM_GET_REGS: u64 = 0x8090_ae81;

/// _IOR(KVMIO, 0x83, struct kvm_sregs)
const KVM_GET_SREGS: u64 = 0x8138_ae83;

/// _IOW(KVMIO, 0x76, struct kvm_irqfd)
pub(super) const KVM_IRQFD: u64 = 0x4020_ae76;

/// _IOW(KVMIO, 0x79, struct kvm_ioeventfd)
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// The calls of virtiofsd and of our layer above it. Paths are below the jail's root, or relative
/// to a descriptor below it.
pub(super) const FILES: Rules = rules! {
    SYS_unshare OneOf(0, &[libc::CLONE_FS as u64]), Both("a thread's own working directory");
    SYS_capget Always, Both("which capabilities a thread has, before it drops one");
    SYS_capset Always, Both("a write drops CAP_FSETID, as the guest's kernel asks");
    SYS_prctl OneOf(0, &[libc::PR_CAPBSET_READ as u64, libc::PR_CAP_AMBIENT as u64]),
        Both("libcap-ng reads the bounding set and the ambient capabilities");
    SYS_setresuid Always, Both("making a file as the guest's user");
    SYS_setresgid Always, Both("making a file as the guest's group");
    SYS_setgroups Always,
        Seldom("making a file where its group is a supplementary one of the guest's user");
    SYS_geteuid Always, Both("who the thread is before it becomes the guest's user");
    SYS_getegid Always, Both("the same");
    SYS_getpid Always, Both("the path of an own descriptor");
    SYS_gettid Always, Both("the same");
    SYS_umask Always, Both("making a file with the guest's mask");
    SYS_fchdir Always, Both("attributes by a path: into the descriptors' directory and back");
    SYS_openat Always, Both("opening a file or directory");
    SYS_openat2 Always, Both("opening a name, without following links");
    SYS_name_to_handle_at Always, Both("which mount and file a name is");
    SYS_fanotify_init Always, Both("changes by others, for the guest's inotify");
    SYS_fanotify_mark Always, Both("the same; the marks are of files that are open here");
    SYS_dup Always, Both("a second descriptor of an open file");
    SYS_memfd_create Always, Kvm("saving a machine: virtiofsd writes its state to a file");
    SYS_getrandom Always, Kvm("the same: the seed of a hash map");
    SYS_fcntl OneOf(1, &[libc::F_DUPFD_CLOEXEC as u64]), Both("a second descriptor");
    SYS_fcntl OneOf(1, &[libc::F_GETFL as u64]), Kvm("saving a machine: how files are open");
    SYS_flock Always, Both("flock(2)");
    SYS_fstat Always, Both("attributes of an open file");
    SYS_newfstatat Always, Seldom("fstat(3) of other C libraries");
    SYS_statx Always, Both("attributes of a file, and its mount");
    SYS_fstatfs Always, Both("statfs(2)");
    SYS_fchmod Always, Both("fchmod(2)");
    SYS_fchmodat Always, Both("chmod(2)");
    SYS_fchownat Always, Both("chown(2)");
    SYS_utimensat Always, Both("utimensat(2)");
    SYS_ftruncate Always, Both("truncate(2)");
    SYS_fallocate Always, Both("fallocate(2)");
    SYS_fsync Always, Both("fsync(2)");
    SYS_fdatasync Always, Both("fdatasync(2)");
    SYS_syncfs Always, Both("syncfs(2)");
    SYS_lseek Always, Both("SEEK_HOLE and SEEK_DATA, and directories");
    SYS_pread64 Always, Kvm("saving a machine: what removed files hold");
    SYS_preadv2 Always, Both("reading");
    SYS_pwrite64 Always, Kvm("the same");
    SYS_pwritev2 Always, Both("writing");
    SYS_copy_file_range Always, Both("copy_file_range(2)");
    SYS_getdents64 Always, Both("reading a directory");
    SYS_readlinkat Always, Both("readlink(2)");
    SYS_symlinkat Always, Both("symlink(2)");
    SYS_linkat Always, Both("link(2), and a name for an O_TMPFILE");
    SYS_unlinkat Always, Both("unlink(2) and rmdir(2)");
    SYS_mkdirat Always, Both("mkdir(2)");
    SYS_mknodat Always, Both("mknod(2)");
    SYS_renameat2 Always, Both("renameat2(2)");
    SYS_getxattr Always, Both("getxattr(2) of what cannot be opened");
    SYS_setxattr Always, Both("setxattr(2), likewise");
    SYS_listxattr Always, Both("listxattr(2), likewise");
    SYS_removexattr Always, Seldom("removexattr(2), likewise: links have no user.*");
    SYS_fgetxattr Always, Both("getxattr(2) of a file or directory");
    SYS_fsetxattr Always, Both("setxattr(2), likewise");
    SYS_flistxattr Always, Both("listxattr(2), likewise");
    SYS_fremovexattr Always, Both("removexattr(2), likewise");
    SYS_ioctl OneOf(1, GET_FLAGS_IOCTLS), Both("lsattr(1), and the ids of projects");
    SYS_ioctl OneOf(1, &[FS_IOC_SETFLAGS]), Both("chattr(1)");
    SYS_ioctl OneOf(1, &[FS_IOC_FSSETXATTR]), Seldom("chattr -p, where the host has projects");
};

const GET_FLAGS_IOCTLS: &[u64] = &[
    0x8008_6601, // FS_IOC_GETFLAGS
    0x801c_581f, // FS_IOC_FSGETXATTR
];

/// _IOW('f', 2, long)
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;

/// _IOW('X', 32, struct fsxattr)
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;

/// Locks of the guest's programs, and the threads that wait for them.
pub(super) const FILE_LOCKS: Rules = rules! {
    SYS_fcntl OneOf(1, &[libc::F_OFD_SETLK as u64, libc::F_OFD_SETLKW as u64]),
        Both("fcntl(2)'s locks");
    SYS_fcntl OneOf(1, &[libc::F_OFD_GETLK as u64]), Seldom("F_GETLK of a program");
    SYS_tgkill Always, Both("the signal that ends a wait");
};

pub(super) const DISK: Rules = rules! {
    SYS_timerfd_settime Always, Kvm("the limiter");
    SYS_preadv Always, Kvm("reading");
    SYS_pwritev Always, Kvm("writing");
    SYS_fdatasync Always, Kvm("a flush");
    SYS_fallocate Always, Kvm("discarding, and writing zeroes");
    SYS_fstat Always, Kvm("what a disk is that is saved");
};

pub(super) const NETWORK: Rules = rules! {
    SYS_writev Always, Kvm("a packet of the guest");
    SYS_timerfd_settime Always, Kvm("the limiter");
};

/// Receiving the memory and the doorbells of the front end.
pub(super) const VHOST_USER: Rules = rules! {
    SYS_accept4 Always, Qemu("QEMU connects");
    SYS_recvmsg Always, Qemu("QEMU's messages, with descriptors");
    SYS_sendmsg Always, Qemu("the answers");
    SYS_gettid Always, Qemu("the library's thread");
};
