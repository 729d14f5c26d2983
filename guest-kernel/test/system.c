/* System calls, processes, memory, and what of x86 programs depend on. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/membarrier.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static const char *event_descriptors(const void *unused)
{
	sigset_t signals;

	sigemptyset(&signals);
	TRY(epoll_create1(0));
	TRY(eventfd(0, 0));
	TRY(timerfd_create(CLOCK_BOOTTIME, 0));
	TRY(signalfd(-1, &signals, 0));
	TRY(inotify_init1(0));
	TRY(fanotify_init(FAN_CLASS_CONTENT, O_RDONLY));
	return NULL;
}

static const char *dnotify(const void *unused)
{
	TRY(fcntl(open("/tmp", O_RDONLY), F_NOTIFY, DN_CREATE));
	return NULL;
}

static const char *sysv_ipc(const void *unused)
{
	TRY(shmget(IPC_PRIVATE, 4096, 0600));
	TRY(semget(IPC_PRIVATE, 1, 0600));
	TRY(msgget(IPC_PRIVATE, 0600));
	return NULL;
}

static const char *posix_mqueue(const void *unused)
{
	TRY(mq_open("/check", O_CREAT | O_RDWR, 0600, NULL));
	return NULL;
}

static const char *io_uring(const void *unused)
{
	struct io_uring_params parameters = { 0 };

	TRY(syscall(SYS_io_uring_setup, 4, &parameters));
	return NULL;
}

static const char *aio(const void *unused)
{
	unsigned long context = 0;

	TRY(syscall(SYS_io_setup, 1, &context));
	return NULL;
}

static const char *user_faults(const void *unused)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	TRY(fd);
	TRY(ioctl(fd, UFFDIO_API, &api));
	return api.features & UFFD_FEATURE_MISSING_SHMEM ? NULL : "no faults on shared memory";
}

static const char *pidfd(const void *unused)
{
	int fd = syscall(SYS_pidfd_open, getpid(), 0);

	TRY(fd);
	TRY(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
	return NULL;
}

static const char *memfd_seals(const void *unused)
{
	int fd = memfd_create("check", MFD_ALLOW_SEALING);

	TRY(fd);
	TRY(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	return write(fd, "x", 1) < 0 && errno == EPERM ? NULL : "a sealed file was written to";
}

static const char *memfd_hugetlb(const void *unused)
{
	const size_t size = 2 << 20;
	const char *why = write_file("/proc/sys/vm/nr_hugepages", "2");
	char *memory;
	int fd;

	if (why)
		return why;
	TRY(fd = memfd_create("check", MFD_HUGETLB));
	TRY(ftruncate(fd, size));
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return fail_errno("mmap");
	memory[0] = 1;
	return write_file("/proc/sys/vm/nr_hugepages", "0");
}

static const char *hugetlbfs(const void *unused)
{
	TRY(mkdir("/tmp/huge", 0700));
	TRY(mount("huge", "/tmp/huge", "hugetlbfs", 0, "pagesize=2M"));
	return NULL;
}

static const char *kcmp(const void *unused)
{
	TRY(syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0));
	return NULL;
}

static const char *process_memory(const void *unused)
{
	char from[4] = "abc", to[4] = "";
	struct iovec local = { to, sizeof(to) }, remote = { from, sizeof(from) };

	TRY(process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	return strcmp(from, to) ? "read something else" : NULL;
}

/* With a chosen pid, as CRIU restores processes. */
static const char *checkpoint_restore(const void *unused)
{
	pid_t wanted = 4242;
	struct clone_args arguments = { .exit_signal = SIGCHLD, .set_tid = (unsigned long)&wanted,
					.set_tid_size = 1 };
	long pid = syscall(SYS_clone3, &arguments, sizeof(arguments));

	TRY(pid);
	if (pid == 0)
		_exit(0);
	TRY(access("/proc/self/map_files", F_OK));
	return pid == wanted ? NULL : fail("pid %ld", pid);
}

static const char *proc_children(const void *unused)
{
	char path[64], children[64];

	if (fork() == 0)
		pause();
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", getpid(), getpid());
	if (read_file(path, children, sizeof(children)))
		return fail_errno(path);
	return children[0] ? NULL : "empty";
}

static int traced(void)
{
	ptrace(PTRACE_TRACEME);
	raise(SIGSTOP);
	return 0;
}

static const char *process_tracing(const void *unused)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(traced());
	TRY(waitpid(pid, &status, 0));
	TRY(ptrace(PTRACE_CONT, pid, NULL, NULL));
	TRY(waitpid(pid, &status, 0));
	return WIFEXITED(status) ? NULL : "the traced child did not end";
}

static int crash(void)
{
	setrlimit(RLIMIT_CORE, &(struct rlimit){ RLIM_INFINITY, RLIM_INFINITY });
	if (chdir("/tmp") < 0)
		return 1;
	abort();
}

static const char *core_dumps(const void *unused)
{
	const char *why = write_file("/proc/sys/kernel/core_pattern", "core");
	int status = in_child(crash);

	if (why)
		return why;
	TRY(access("/tmp/core", F_OK));
	TRY(unlink("/tmp/core"));
	return WCOREDUMP(status) ? NULL : "the status does not tell of a core";
}

static const char *keyrings(const void *unused)
{
	TRY(syscall(SYS_add_key, "user", "check", "x", 1, KEY_SPEC_SESSION_KEYRING));
	return NULL;
}

static const char *membarrier(const void *unused)
{
	TRY(syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0));
	return NULL;
}

/* The C library has registered already: EINVAL or EBUSY, but not ENOSYS. */
static const char *rseq(const void *unused)
{
	return syscall(SYS_rseq, NULL, 0, 0, 0) < 0 && errno != ENOSYS ? NULL : fail_errno("rseq");
}

static const char *perf_events(const void *unused)
{
	struct perf_event_attr event = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(event),
					 .config = PERF_COUNT_SW_TASK_CLOCK };

	TRY(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
	return NULL;
}

static long filter_getppid(unsigned action, unsigned flags)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static const char *seccomp_filter(const void *unused)
{
	TRY(filter_getppid(SECCOMP_RET_ERRNO | EXDEV, 0));
	return syscall(SYS_getppid) < 0 && errno == EXDEV ? NULL : "the filter did not apply";
}

static const char *seccomp_notification(const void *unused)
{
	TRY(filter_getppid(SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER));
	return NULL;
}

static const char *landlock(const void *unused)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
			       LANDLOCK_CREATE_RULESET_VERSION);

	TRY(version);
	return version >= 5 ? NULL : fail("ABI %ld", version);
}

static const char *file_handles(const void *unused)
{
	struct file_handle *handle = calloc(1, sizeof(*handle) + MAX_HANDLE_SZ);
	int mount_id;

	handle->handle_bytes = MAX_HANDLE_SZ;
	TRY(name_to_handle_at(AT_FDCWD, "/tmp", handle, &mount_id, 0));
	return NULL;
}

static const char *resource_controls(const void *unused)
{
	TRY(syscall(SYS_ioprio_get, 1, 0));
	TRY(prlimit(0, RLIMIT_NOFILE, NULL, &(struct rlimit){ 0 }));
	return NULL;
}

/* getpid by the 32-bit entry, from 64-bit code. */
static const char *system_call_32_bit(const void *unused)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
	return result == getpid() ? NULL : fail("returned %ld", result);
}

static int exec_32_bit(void)
{
	return execl("/exit42-32bit", "exit42-32bit", NULL);
}

static const char *program_32_bit(const void *unused)
{
	int status = in_child(exec_32_bit);

	return WEXITSTATUS(status) == 42 ? NULL : fail("wait status %#x", status);
}

static const char *vsyscall_page(const void *unused)
{
	time_t (*vsyscall_time)(time_t *) = (void *)0xffffffffff600400;

	return vsyscall_time(NULL) >= 0 ? NULL : "time() failed";
}

static const char *modify_ldt(const void *unused)
{
	struct user_desc segment = { .limit = 0xfffff, .seg_32bit = 0, .limit_in_pages = 1 };

	TRY(syscall(SYS_modify_ldt, 1, &segment, sizeof(segment)));
	return NULL;
}

static const char *port_access(const void *unused)
{
	TRY(ioperm(0xf4, 1, 1));
	return NULL;
}

static const char *protection_keys(const void *unused)
{
	/* A CPU without them is no fault of the kernel's. */
	if (!file_has_word("/proc/cpuinfo", "pku"))
		return NULL;
	TRY(syscall(SYS_pkey_alloc, 0, 0));
	return NULL;
}

static const char *memory_hotplug(const void *unused)
{
	char state[32];

	return read_file("/sys/devices/system/memory/auto_online_blocks", state, sizeof(state));
}

/* Before they are needed, the struct pages of most of the memory are not initialised. */
static const char *page_walkers(const void *unused)
{
	static char flags[1 << 16];
	int file;

	TRY(file = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC));
	for (ssize_t got = 1; got > 0;)
		TRY(got = read(file, flags, sizeof(flags)));
	close(file);
	return write_file("/proc/sys/vm/compact_memory", "1");
}

static const char *all_memory(const void *unused)
{
	size_t kept = 64 << 20, page = sysconf(_SC_PAGESIZE);
	size_t size = (size_t)sysconf(_SC_AVPHYS_PAGES) * page - kept;
	size_t total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (total < (size_t)700 << 20 || size < total / 4 * 3)
		return fail("%zu of %zu bytes are free", size + kept, total);
	if (memory == MAP_FAILED)
		return fail_errno("mmap");
	for (size_t at = 0; at < size; at += page)
		*(size_t *)(memory + at) = at;
	for (size_t at = 0; at < size; at += page)
		if (*(size_t *)(memory + at) != at)
			return fail("the page at %zu holds %zu", at, *(size_t *)(memory + at));
	if ((size_t)sysconf(_SC_AVPHYS_PAGES) * page > kept * 2)
		return fail("%ld pages are free", sysconf(_SC_AVPHYS_PAGES));
	munmap(memory, size);
	return NULL;
}

static const char *cpu_hotplug(const void *unused)
{
	const char *file = "/sys/devices/system/cpu/cpu1/online";
	const char *why = write_file(file, "0");

	if (!why && sysconf(_SC_NPROCESSORS_ONLN) != 1)
		why = "still online";
	return why ? why : write_file(file, "1");
}

static const char *high_resolution_timers(const void *unused)
{
	struct timespec resolution;

	TRY(clock_getres(CLOCK_MONOTONIC, &resolution));
	return resolution.tv_nsec == 1 ? NULL : fail("%ld ns", resolution.tv_nsec);
}

static const char *pressure_stall(const void *unused)
{
	char text[256];

	return read_file("/proc/pressure/cpu", text, sizeof(text));
}

const struct check system_checks[] = {
	{ "epoll, eventfd, timerfd, signalfd, inotify, fanotify", event_descriptors },
	{ "dnotify", dnotify },
	{ "System V shared memory, semaphores, message queues", sysv_ipc },
	{ "POSIX message queues", posix_mqueue },
	{ "io_uring", io_uring },
	{ "aio", aio },
	{ "userfaultfd", user_faults },
	{ "pidfd", pidfd },
	{ "memfd with seals", memfd_seals },
	{ "memfd of huge pages", memfd_hugetlb },
	{ "hugetlbfs", hugetlbfs },
	{ "transparent huge pages on madvise", holds,
	  WORD("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]") },
	{ "kcmp", kcmp },
	{ "process_vm_readv", process_memory },
	{ "checkpoint and restore: chosen pid, map_files", checkpoint_restore },
	{ "/proc/<pid>/task/<tid>/children", proc_children },
	{ "I/O accounting of tasks", holds, WORD("/proc/self/io", "rchar:") },
	{ "delay accounting of tasks", exists, "/proc/sys/kernel/task_delayacct" },
	{ "page maps of tasks", exists, "/proc/self/pagemap" },
	{ "ptrace", process_tracing },
	{ "core dumps", core_dumps },
	{ "keyrings", keyrings },
	{ "membarrier", membarrier },
	{ "rseq", rseq },
	{ "perf events in software", perf_events },
	{ "seccomp filter", seccomp_filter },
	{ "seccomp user notification", seccomp_notification },
	{ "landlock", landlock },
	{ "file handles", file_handles },
	{ "ioprio and prlimit", resource_controls },
	{ "32-bit system call", system_call_32_bit },
	{ "32-bit program", program_32_bit },
	{ "vsyscall page", vsyscall_page },
	{ "modify_ldt", modify_ldt },
	{ "ioperm", port_access },
	{ "memory protection keys", protection_keys },
	{ "page flags and compaction", page_walkers },
	{ "all of the memory", all_memory },
	{ "memory hotplug", memory_hotplug },
	{ "CPU hotplug", cpu_hotplug },
	{ "high-resolution timers", high_resolution_timers },
	{ "/proc/config.gz", exists, "/proc/config.gz" },
	{ "dmesg for the privileged alone", holds, WORD("/proc/sys/kernel/dmesg_restrict", "1") },
	{ "pressure stall information with psi=1", pressure_stall },
	{ 0 },
};
