/* The init of the test machine: runs every check, prints a line for each and ends the machine. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { CHECK_SECONDS = 20, EXIT_PORT = 0xf4 };

static const struct check *const groups[] = {
	system_checks, container_checks, file_checks,
	device_checks, network_checks,   netfilter_checks,
};

static char reason[512];

const char *fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(reason, sizeof(reason), format, arguments);
	va_end(arguments);
	return reason;
}

const char *fail_errno(const char *what)
{
	return fail("%s: %s", what, strerror(errno));
}

const char *write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return fail("writing \"%s\" to %s: %s", text, path, strerror(errno));
	close(fd);
	return NULL;
}

const char *read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);

	if (length < 0)
		return fail("reading %s: %s", path, strerror(errno));
	text[length] = '\0';
	close(fd);
	return NULL;
}

bool file_has_word(const char *path, const char *word)
{
	FILE *file = fopen(path, "r");
	char found[128];
	bool has = false;

	while (file && !has && fscanf(file, "%127s", found) == 1)
		has = strcmp(found, word) == 0;
	if (file)
		fclose(file);
	return has;
}

const char *exists(const void *path)
{
	return access(path, F_OK) ? fail_errno(path) : NULL;
}

const char *holds(const void *argument)
{
	const struct word *word = argument;

	return file_has_word(word->path, word->word) ? NULL : fail("no %s in %s", word->word, word->path);
}

int in_child(int (*body)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(body());
	return pid > 0 && waitpid(pid, &status, 0) == pid ? status : -1;
}

/*
 * A check may leave namespaces, limits and filters behind: it gets a process of its own, and what
 * that has started ends with it.
 */
static bool passes(const struct check *check)
{
	int channel[2], status;
	ssize_t length;
	pid_t pid;

	if (pipe(channel) < 0)
		return false;
	pid = fork();
	if (pid == 0) {
		const char *why;

		setpgid(0, 0);
		alarm(CHECK_SECONDS);
		why = check->run(check->argument);
		if (why && write(channel[1], why, strlen(why)) < 0)
			_exit(2);
		_exit(why != NULL);
	}
	waitpid(pid, &status, 0);
	kill(-pid, SIGKILL);
	close(channel[1]);
	length = read(channel[0], reason, sizeof(reason) - 1);
	reason[length > 0 ? length : 0] = '\0';
	close(channel[0]);
	if (WIFSIGNALED(status))
		snprintf(reason, sizeof(reason), "ended by signal %d", WTERMSIG(status));
	if (status == 0)
		printf("ok    %s\n", check->name);
	else
		printf("FAIL  %s: %s\n", check->name, reason);
	return status == 0;
}

static void mount_system(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/tmp", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
}

int main(int argc, char **argv)
{
	int failed = 0, total = 0;

	/* The interpreter of the binfmt checks: argv[1] is the interpreted file. */
	if (argc > 1 && getpid() != 1)
		return access(argv[1], F_OK) == 0 ? 42 : 1;

	mount_system();
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
		for (const struct check *check = groups[i]; check->name; check++, total++)
			failed += !passes(check);
	}
	printf("%d checks, %d failed\n", total, failed);
	fflush(stdout);
	ioperm(EXIT_PORT, 1, 1);
	outb(failed != 0, EXIT_PORT);
	/* QEMU may take a moment to end, and the end of pid 1 would be a panic. */
	pause();
	return 0;
}
