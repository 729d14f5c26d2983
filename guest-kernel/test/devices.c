/* virtio devices of the test machine, and block devices made of other things. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/if_alg.h>
#include <linux/loop.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "check.h"

#define DRIVERS "/sys/bus/virtio/drivers/"
#define SLOTS "/sys/bus/platform/drivers/virtio-mmio/"

/* The first device of a driver, as "virtio3"; its folder holds a link to each. */
static const char *first_device(const char *driver, char *device, size_t size)
{
	char path[128];
	struct dirent *entry;
	DIR *directory;

	snprintf(path, sizeof(path), DRIVERS "%s", driver);
	directory = opendir(path);
	if (!directory)
		return fail_errno(path);
	while ((entry = readdir(directory))) {
		if (strncmp(entry->d_name, "virtio", 6) == 0) {
			snprintf(device, size, "%s", entry->d_name);
			return NULL;
		}
	}
	return "the driver has no device";
}

static const char *bound(const void *driver)
{
	char device[64];

	return first_device(driver, device, sizeof(device));
}

/* Hotplug: the driver lets go of a slot's platform device and takes it again by name. */
static const char *bind_by_name(const void *unused)
{
	const char *why;
	char device[64], path[128], target[512], slot[64];
	ssize_t length;

	if ((why = first_device("virtio_rng", device, sizeof(device))))
		return why;
	snprintf(path, sizeof(path), DRIVERS "virtio_rng/%s", device);
	TRY(length = readlink(path, target, sizeof(target) - 1));
	target[length] = '\0';
	/* ../../../../devices/virtio-mmio-cmdline/virtio-mmio.3/virtio3 */
	if (sscanf(strstr(target, "virtio-mmio.") ?: "", "%63[^/]", slot) != 1)
		return fail("%s leads to %s", path, target);
	if ((why = write_file(SLOTS "unbind", slot)))
		return why;
	if (access(path, F_OK) == 0)
		return "still bound";
	return write_file(SLOTS "bind", slot);
}

static const char *random_numbers(const void *unused)
{
	char bytes[16];

	TRY(read(open("/dev/hwrng", O_RDONLY), bytes, sizeof(bytes)));
	return NULL;
}

static const char *vsock(const void *unused)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
				       .svm_port = 1024 };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	TRY(fd);
	TRY(bind(fd, (void *)&address, sizeof(address)));
	return exists(DRIVERS "vmw_vsock_virtio_transport");
}

static int scratch_file(const char *path)
{
	int fd = open(path, O_CREAT | O_RDWR, 0600);

	return fd >= 0 && ftruncate(fd, 4 << 20) == 0 ? fd : -1;
}

/* An MBR with one Linux partition of a megabyte, scanned when the loop device is set up. */
static const char *partitions(const void *unused)
{
	static const unsigned char entry[16] = { [4] = 0x83, [8] = 0x08, [13] = 0x08 };
	struct loop_config configuration = { .info.lo_flags = LO_FLAGS_PARTSCAN };
	char path[64];
	int number;

	TRY(configuration.fd = scratch_file("/tmp/partitioned"));
	TRY(pwrite(configuration.fd, entry, sizeof(entry), 446));
	TRY(pwrite(configuration.fd, "\x55\xaa", 2, 510));
	TRY(number = ioctl(open("/dev/loop-control", O_RDWR), LOOP_CTL_GET_FREE));
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	TRY(ioctl(open(path, O_RDWR), LOOP_CONFIGURE, &configuration));
	snprintf(path, sizeof(path), "/sys/block/loop%d/loop%dp1", number, number);
	return exists(path);
}

static const char *loop(const void *unused)
{
	char path[32];
	int number, device;

	TRY(number = ioctl(open("/dev/loop-control", O_RDWR), LOOP_CTL_GET_FREE));
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	TRY(device = open(path, O_RDWR));
	TRY(ioctl(device, LOOP_SET_FD, scratch_file("/tmp/loop")));
	TRY(write(device, "hello", 5));
	return NULL;
}

static const char *device_mapper(const void *wanted)
{
	struct { struct dm_ioctl header; char data[4096]; } request = { 0 };
	struct dm_target_versions *target;
	int fd = open("/dev/mapper/control", O_RDWR);

	TRY(fd);
	request.header.version[0] = DM_VERSION_MAJOR;
	request.header.data_size = sizeof(request);
	request.header.data_start = sizeof(request.header);
	TRY(ioctl(fd, DM_LIST_VERSIONS, &request));
	for (target = (void *)request.data; strcmp(target->name, wanted);
	     target = (void *)((char *)target + target->next)) {
		if (!target->next)
			return "no such target";
	}
	return NULL;
}

static const char *compressed_memory(const void *algorithm)
{
	const char *why;
	char number[16] = "", path[64];

	if ((why = read_file("/sys/class/zram-control/hot_add", number, sizeof(number))))
		return why;
	snprintf(path, sizeof(path), "/sys/block/zram%d/comp_algorithm", atoi(number));
	if ((why = write_file(path, algorithm)))
		return why;
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", atoi(number));
	return write_file(path, "4M");
}

/* The header that mkswap writes, for 4 MiB (include/linux/swap.h, union swap_header). */
static const char *swap(const void *unused)
{
	char page[4096] = { 0 };
	const unsigned version = 1, last_page = 1023;
	const char *why = compressed_memory("lzo-rle");
	int fd;

	if (why)
		return why;
	memcpy(page + 1024, &version, sizeof(version));
	memcpy(page + 1028, &last_page, sizeof(last_page));
	memcpy(page + 4086, "SWAPSPACE2", 10);
	for (int i = 9; i >= 0; i--) {
		char path[32], size[32];

		snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", i);
		if (read_file(path, size, sizeof(size)) || atol(size) == 0)
			continue;
		snprintf(path, sizeof(path), "/dev/zram%d", i);
		TRY(fd = open(path, O_RDWR));
		TRY(write(fd, page, sizeof(page)));
		TRY(fsync(fd));
		TRY(swapon(path, 0));
		TRY(swapoff(path));
		return NULL;
	}
	return "no zram device";
}

static const char *io_scheduler(const void *name)
{
	return write_file("/sys/block/vda/queue/scheduler", name);
}

struct algorithm {
	const char *type, *name;
};

static const char *kernel_crypto(const void *argument)
{
	const struct algorithm *algorithm = argument;
	struct sockaddr_alg address = { .salg_family = AF_ALG };
	int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);

	strcpy((char *)address.salg_type, algorithm->type);
	strcpy((char *)address.salg_name, algorithm->name);
	TRY(fd);
	TRY(bind(fd, (void *)&address, sizeof(address)));
	return NULL;
}

#define ALGORITHM(type, name) &(const struct algorithm){ type, name }

const struct check device_checks[] = {
	{ "virtio-blk", bound, "virtio_blk" },
	{ "virtio-net", bound, "virtio_net" },
	{ "virtio-console", bound, "virtio_console" },
	{ "virtio-rng", bound, "virtio_rng" },
	{ "virtio-balloon", bound, "virtio_balloon" },
	/* Two that QEMU's microvm cannot have. */
	{ "virtio-mem", exists, DRIVERS "virtio_mem" },
	{ "virtio-pmem driver", exists, DRIVERS "virtio_pmem" },
	{ "virtio-fs driver", exists, DRIVERS "virtiofs" },
	{ "virtio-vsock", vsock },
	{ "hardware random numbers", random_numbers },
	{ "a slot is unbound and bound by name", bind_by_name },
	{ "console on hvc0", holds, WORD("/sys/class/tty/console/active", "hvc0") },
	{ "loop device on demand", loop },
	{ "partition table", partitions },
	{ "device mapper: linear", device_mapper, "linear" },
	{ "device mapper: snapshot", device_mapper, "snapshot" },
	{ "device mapper: thin-pool", device_mapper, "thin-pool" },
	{ "device mapper: crypt", device_mapper, "crypt" },
	{ "device mapper: verity", device_mapper, "verity" },
	{ "zram: lz4", compressed_memory, "lz4" },
	{ "zram: zstd", compressed_memory, "zstd" },
	{ "swap on zram", swap },
	{ "I/O scheduler: mq-deadline", io_scheduler, "mq-deadline" },
	{ "I/O scheduler: bfq", io_scheduler, "bfq" },
	{ "I/O scheduler: none", io_scheduler, "none" },
	{ "AF_ALG: sha256", kernel_crypto, ALGORITHM("hash", "sha256") },
	{ "AF_ALG: hmac(sha256)", kernel_crypto, ALGORITHM("hash", "hmac(sha256)") },
	{ "AF_ALG: xts(aes)", kernel_crypto, ALGORITHM("skcipher", "xts(aes)") },
	{ "AF_ALG: gcm(aes)", kernel_crypto, ALGORITHM("aead", "gcm(aes)") },
	/* The device itself exists only on KVM. */
	{ "clock of the host", exists, "/sys/class/ptp" },
	{ 0 },
};
