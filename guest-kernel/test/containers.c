/* Namespaces, cgroup v2 with its controllers, and device rules by BPF. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define CGROUPS "/sys/fs/cgroup"

struct namespace {
	int flag;
	const char *link;
};

static const char *new_namespace(const void *argument)
{
	const struct namespace *namespace = argument;
	char before[64] = "", after[64] = "";

	TRY(readlink(namespace->link, before, sizeof(before) - 1));
	TRY(unshare(namespace->flag));
	TRY(readlink(namespace->link, after, sizeof(after) - 1));
	return strcmp(before, after) ? NULL : fail("still %s", after);
}

static int is_pid_1(void)
{
	return getpid() == 1;
}

static const char *pid_namespace(const void *unused)
{
	TRY(unshare(CLONE_NEWPID));
	return WEXITSTATUS(in_child(is_pid_1)) == 1 ? NULL : "the first child is not pid 1";
}

static const char *user_namespace(const void *unused)
{
	const char *why;

	TRY(unshare(CLONE_NEWUSER));
	why = write_file("/proc/self/setgroups", "deny");
	if (!why)
		why = write_file("/proc/self/uid_map", "1000 0 1");
	return why || getuid() == 1000 ? why : fail("uid %d", getuid());
}

static const char *time_offset(const void *unused)
{
	TRY(unshare(CLONE_NEWTIME));
	return write_file("/proc/self/timens_offsets", "monotonic 1000 0");
}

static const char *controller(const void *name)
{
	char enable[32];

	if (!file_has_word(CGROUPS "/cgroup.controllers", name))
		return "not among the controllers";
	snprintf(enable, sizeof(enable), "+%s", (const char *)name);
	return write_file(CGROUPS "/cgroup.subtree_control", enable);
}

struct control {
	const char *file, *text;
};

/* A limit is accepted by a fresh cgroup. */
static const char *control(const void *argument)
{
	const struct control *control = argument;
	char group[] = CGROUPS "/control.XXXXXX", path[128];

	if (!mkdtemp(group))
		return fail_errno(group);
	snprintf(path, sizeof(path), "%s/%s", group, control->file);
	return write_file(path, control->text);
}

static int try_fork(void)
{
	return fork() < 0 ? errno : 0;
}

static const char *pids_limit(const void *unused)
{
	const char *why;
	int status;

	TRY(mkdir(CGROUPS "/few", 0755));
	why = write_file(CGROUPS "/few/pids.max", "2");
	if (!why)
		why = write_file(CGROUPS "/few/cgroup.procs", "0");
	if (why)
		return why;
	status = in_child(try_fork);
	return WEXITSTATUS(status) == EAGAIN ? NULL : "a third process was made";
}

static int eat_memory(void)
{
	static char memory[64 << 20];

	if (write_file(CGROUPS "/small/cgroup.procs", "0"))
		return 1;
	memset(memory, 1, sizeof(memory));
	return 0;
}

static const char *memory_limit(const void *unused)
{
	const char *why;
	int status;

	TRY(mkdir(CGROUPS "/small", 0755));
	why = write_file(CGROUPS "/small/memory.max", "16M");
	if (why)
		return why;
	status = in_child(eat_memory);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
		? NULL : fail("wait status %#x instead of a kill", status);
}

static int wait_for_kill(void)
{
	if (write_file(CGROUPS "/doomed/cgroup.procs", "0") ||
	    write_file(CGROUPS "/doomed/cgroup.freeze", "1"))
		return 1;
	pause();
	return 0;
}

static const char *freeze_and_kill(const void *unused)
{
	int status;
	pid_t pid;

	TRY(mkdir(CGROUPS "/doomed", 0755));
	pid = fork();
	if (pid == 0)
		_exit(wait_for_kill());
	while (!file_has_word(CGROUPS "/doomed/cgroup.freeze", "1"))
		usleep(1000);
	write_file(CGROUPS "/doomed/cgroup.kill", "1");
	TRY(waitpid(pid, &status, 0));
	return WIFSIGNALED(status) ? NULL : fail("wait status %#x", status);
}

static long bpf(int command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static long load_program(int type, int result)
{
	const struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = result },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr load = { .prog_type = type, .insns = (uintptr_t)code, .insn_cnt = 2,
				.license = (uintptr_t)"Apache-2.0" };

	return bpf(BPF_PROG_LOAD, &load);
}

static const char *device_rules(const void *unused)
{
	union bpf_attr attach = { .attach_type = BPF_CGROUP_DEVICE };

	TRY(mkdir(CGROUPS "/nodevices", 0755));
	TRY(attach.target_fd = open(CGROUPS "/nodevices", O_RDONLY | O_DIRECTORY));
	TRY(attach.attach_bpf_fd = load_program(BPF_PROG_TYPE_CGROUP_DEVICE, 0));
	TRY(bpf(BPF_PROG_ATTACH, &attach));
	write_file(CGROUPS "/nodevices/cgroup.procs", "0");
	return open("/dev/zero", O_RDONLY) < 0 && errno == EPERM ? NULL : "/dev/zero opens";
}

static const char *bpf_programs(const void *type)
{
	TRY(load_program(*(const int *)type, 1));
	return NULL;
}

static const char *bpf_maps(const void *unused)
{
	union bpf_attr map = { .map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4,
			       .max_entries = 8 };

	TRY(bpf(BPF_MAP_CREATE, &map));
	return NULL;
}

static const char *hierarchy_v1(const void *unused)
{
	TRY(mkdir("/tmp/v1", 0755));
	TRY(mount("none", "/tmp/v1", "cgroup", 0, "none,name=systemd"));
	return NULL;
}

#define NAMESPACE(flag, link) &(const struct namespace){ flag, "/proc/self/ns/" link }
#define CONTROL(file, text) &(const struct control){ file, text }

const struct check container_checks[] = {
	{ "namespace: mount", new_namespace, NAMESPACE(CLONE_NEWNS, "mnt") },
	{ "namespace: UTS", new_namespace, NAMESPACE(CLONE_NEWUTS, "uts") },
	{ "namespace: IPC", new_namespace, NAMESPACE(CLONE_NEWIPC, "ipc") },
	{ "namespace: network", new_namespace, NAMESPACE(CLONE_NEWNET, "net") },
	{ "namespace: cgroup", new_namespace, NAMESPACE(CLONE_NEWCGROUP, "cgroup") },
	{ "namespace: time", new_namespace, NAMESPACE(CLONE_NEWTIME, "time_for_children") },
	{ "namespace: pid", pid_namespace },
	{ "namespace: user", user_namespace },
	{ "namespace: time offset", time_offset },
	{ "controller: cpu", controller, "cpu" },
	{ "controller: cpuset", controller, "cpuset" },
	{ "controller: memory", controller, "memory" },
	{ "controller: io", controller, "io" },
	{ "controller: pids", controller, "pids" },
	{ "controller: hugetlb", controller, "hugetlb" },
	{ "controller: misc", controller, "misc" },
	{ "control: cpu.max", control, CONTROL("cpu.max", "50000 100000") },
	{ "control: cpu.weight", control, CONTROL("cpu.weight", "50") },
	{ "control: cpu.idle", control, CONTROL("cpu.idle", "1") },
	{ "control: cpuset.cpus", control, CONTROL("cpuset.cpus", "0") },
	{ "control: memory.high", control, CONTROL("memory.high", "64M") },
	{ "control: memory.low", control, CONTROL("memory.low", "1M") },
	{ "control: memory.swap.max", control, CONTROL("memory.swap.max", "0") },
	{ "control: memory.oom.group", control, CONTROL("memory.oom.group", "1") },
	{ "control: memory.reclaim", control, CONTROL("memory.reclaim", "0") },
	{ "control: io.max", control, CONTROL("io.max", "254:0 rbps=1048576 wiops=100") },
	{ "control: io.weight", control, CONTROL("io.weight", "default 50") },
	{ "control: io.bfq.weight", control, CONTROL("io.bfq.weight", "50") },
	{ "control: io.latency", control, CONTROL("io.latency", "254:0 target=1000") },
	{ "control: hugetlb.2MB.max", control, CONTROL("hugetlb.2MB.max", "0") },
	{ "control: cpu.pressure", control, CONTROL("cpu.pressure", "some 500000 2000000") },
	{ "control: io.cost.qos", exists, CGROUPS "/io.cost.qos" },
	{ "cgroup: pids.max refuses", pids_limit },
	{ "cgroup: memory.max kills", memory_limit },
	{ "cgroup: freeze and kill", freeze_and_kill },
	{ "cgroup: a named v1 hierarchy for old systemd", hierarchy_v1 },
	{ "device rules by BPF", device_rules },
	{ "BPF: socket filter", bpf_programs, &(const int){ BPF_PROG_TYPE_SOCKET_FILTER } },
	{ "BPF: cgroup egress", bpf_programs, &(const int){ BPF_PROG_TYPE_CGROUP_SKB } },
	{ "BPF: traffic control", bpf_programs, &(const int){ BPF_PROG_TYPE_SCHED_CLS } },
	{ "BPF: XDP", bpf_programs, &(const int){ BPF_PROG_TYPE_XDP } },
	{ "BPF: maps", bpf_maps },
	{ "BPF: compiled", holds, WORD("/proc/sys/net/core/bpf_jit_enable", "1") },
	{ "BPF: refused to the unprivileged", holds,
	  WORD("/proc/sys/kernel/unprivileged_bpf_disabled", "2") },
	{ "scheduler autogroups", exists, "/proc/self/autogroup" },
	{ 0 },
};
