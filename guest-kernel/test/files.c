/* File systems and what they carry: attributes, ACLs, quotas, id mappings. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/quota.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"

struct image {
	const char *type, *device, *options;
	bool read_only;
};

/* Images made on the host, each holding a file "hello". */
static const char *mount_image(const void *argument)
{
	const struct image *image = argument;
	char text[16];
	const char *why;

	TRY(unshare(CLONE_NEWNS));
	TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	TRY(mkdir("/tmp/image", 0755) < 0 && errno != EEXIST ? -1 : 0);
	TRY(mount(image->device, "/tmp/image", image->type, image->read_only ? MS_RDONLY : 0,
		  image->options));
	why = read_file("/tmp/image/hello", text, sizeof(text));
	if (why || image->read_only)
		return why;
	TRY(creat("/tmp/image/new", 0644));
	TRY(setxattr("/tmp/image/new", "user.check", "x", 1, 0));
	TRY(setxattr("/tmp/image/new", "security.check", "x", 1, 0));
	return NULL;
}

static const char *overlay(const void *unused)
{
	char text[16];

	TRY(mkdir("/tmp/o", 0755));
	TRY(mkdir("/tmp/o/lower", 0755));
	TRY(mkdir("/tmp/o/upper", 0755));
	TRY(mkdir("/tmp/o/work", 0755));
	TRY(mkdir("/tmp/o/merged", 0755));
	TRY(creat("/tmp/o/lower/file", 0644));
	TRY(mount("overlay", "/tmp/o/merged", "overlay", 0,
		  "lowerdir=/tmp/o/lower,upperdir=/tmp/o/upper,workdir=/tmp/o/work"));
	TRY(unlink("/tmp/o/merged/file"));
	TRY(getxattr("/tmp/o/upper", "trusted.overlay.none", text, 0) < 0 && errno == ENODATA ? 0 : -1);
	return access("/tmp/o/upper/file", F_OK) ? fail("no whiteout") : NULL;
}

static const char *erofs_from_a_file(const void *image)
{
	TRY(mkdir("/tmp/ext4", 0755));
	TRY(mount("/dev/vda", "/tmp/ext4", "ext4", 0, "acl,user_xattr"));
	return mount_image(image);
}

static const char *fuse_device(const void *path)
{
	TRY(open(path, O_RDWR));
	return NULL;
}

/* Version 2, one entry each for the owner, user 1, the group, the mask and others. */
static const char *posix_acl(const void *directory)
{
	static const struct {
		uint32_t version;
		struct { uint16_t tag, permissions; uint32_t id; } entries[5];
	} acl = { 2, { { 1, 6, -1 }, { 2, 4, 1 }, { 4, 4, -1 }, { 0x10, 4, -1 }, { 0x20, 0, -1 } } };
	char path[64];

	snprintf(path, sizeof(path), "%s/acl", (const char *)directory);
	TRY(creat(path, 0600));
	TRY(setxattr(path, "system.posix_acl_access", &acl, sizeof(acl), 0));
	return NULL;
}

static const char *tmpfs_attributes(const void *unused)
{
	TRY(creat("/tmp/attributes", 0600));
	TRY(setxattr("/tmp/attributes", "user.check", "x", 1, 0));
	TRY(setxattr("/tmp/attributes", "trusted.check", "x", 1, 0));
	return NULL;
}

static int sleep_in_user_namespace(void)
{
	if (unshare(CLONE_NEWUSER))
		return 1;
	pause();
	return 0;
}

static const char *id_mapped_mount(const void *unused)
{
	struct mount_attr attributes = { .attr_set = MOUNT_ATTR_IDMAP };
	char path[64];
	struct stat status;
	pid_t pid;
	int tree;

	pid = fork();
	if (pid == 0)
		_exit(sleep_in_user_namespace());
	snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
	for (int i = 0; i < 1000 && write_file(path, "0 5000 10"); i++)
		usleep(1000);
	snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
	write_file(path, "0 5000 10");
	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);

	TRY(mkdir("/tmp/mapped", 0755));
	TRY(creat("/tmp/mapped/file", 0600));
	TRY(tree = syscall(SYS_open_tree, AT_FDCWD, "/tmp/mapped", OPEN_TREE_CLONE));
	TRY(attributes.userns_fd = open(path, O_RDONLY));
	TRY(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof(attributes)));
	TRY(fstatat(tree, "file", &status, 0));
	return status.st_uid == 5000 ? NULL : fail("owner %d", status.st_uid);
}

static const char *quota_on_tmpfs(const void *unused)
{
	TRY(mkdir("/tmp/quota", 0755));
	TRY(mount("quota", "/tmp/quota", "tmpfs", 0, "usrquota,usrquota_block_hardlimit=1M"));
	return NULL;
}

/* Project quota is what limits the size of a container's writable layer. */
static const char *quota_on_xfs(const void *unused)
{
	struct dqblk limits = { .dqb_bhardlimit = 1024, .dqb_valid = QIF_BLIMITS };

	TRY(mkdir("/tmp/xfs", 0755));
	TRY(mount("/dev/vdb", "/tmp/xfs", "xfs", 0, "prjquota"));
	TRY(quotactl(QCMD(Q_SETQUOTA, 2 /* PRJQUOTA */), "/dev/vdb", 7, (void *)&limits));
	return NULL;
}

static const char *special_mount(const void *type)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/%s", (const char *)type);
	TRY(mkdir(path, 0755));
	TRY(mount(type, path, type, 0, NULL));
	return NULL;
}

static int run_file(const char *path)
{
	execl(path, path, NULL);
	return 1;
}

static int run_script(void) { return run_file("/tmp/script"); }
static int run_foreign(void) { return run_file("/tmp/foreign"); }

static const char *executable(const char *path, const char *text)
{
	int fd = creat(path, 0755);

	TRY(fd);
	TRY(write(fd, text, strlen(text)));
	TRY(close(fd));
	return NULL;
}

/* Both are run by this program, which answers an interpreter's call with 42. */
static const char *script(const void *unused)
{
	const char *why = executable("/tmp/script", "#!/init\n");
	int status = why ? 0 : in_child(run_script);

	return why || WEXITSTATUS(status) == 42 ? why : fail("wait status %#x", status);
}

static const char *binfmt_misc(const void *unused)
{
	const char *why = executable("/tmp/foreign", "FOREIGN\n");
	int status;

	TRY(mkdir("/tmp/binfmt", 0755));
	TRY(mount("binfmt", "/tmp/binfmt", "binfmt_misc", 0, NULL));
	if (!why)
		why = write_file("/tmp/binfmt/register", ":check:M::FOREIGN::/init:F");
	if (why)
		return why;
	status = in_child(run_foreign);
	return WEXITSTATUS(status) == 42 ? NULL : fail("wait status %#x", status);
}

#define FILE_SYSTEM(type) WORD("/proc/filesystems", type)
#define IMAGE(...) &(const struct image){ __VA_ARGS__ }

const struct check file_checks[] = {
	{ "ext4", mount_image, IMAGE("ext4", "/dev/vda", "acl,user_xattr") },
	{ "xfs", mount_image, IMAGE("xfs", "/dev/vdb", "") },
	{ "squashfs", mount_image, IMAGE("squashfs", "/dev/vdc", "", true) },
	{ "ext2 and ext3 by ext4", holds, FILE_SYSTEM("ext3") },
	{ "ISO 9660", holds, FILE_SYSTEM("iso9660") },
	{ "VFAT", holds, FILE_SYSTEM("vfat") },
	{ "virtio-fs", holds, FILE_SYSTEM("virtiofs") },
	{ "autofs", holds, FILE_SYSTEM("autofs") },
	{ "overlay", overlay },
	{ "erofs, from a file on ext4", erofs_from_a_file, IMAGE("erofs", "/tmp/ext4/erofs", "", true) },
	{ "FUSE", fuse_device, "/dev/fuse" },
	{ "CUSE", fuse_device, "/dev/cuse" },
	{ "POSIX ACL on tmpfs", posix_acl, "/tmp" },
	{ "extended attributes on tmpfs", tmpfs_attributes },
	{ "id-mapped mount", id_mapped_mount },
	{ "user quota on tmpfs", quota_on_tmpfs },
	{ "project quota on xfs", quota_on_xfs },
	{ "fs-verity", exists, "/sys/fs/ext4/features/verity" },
	{ "mount: devpts", special_mount, "devpts" },
	{ "mount: mqueue", special_mount, "mqueue" },
	{ "mount: configfs", special_mount, "configfs" },
	{ "mount: securityfs", special_mount, "securityfs" },
	{ "mount: bpf", special_mount, "bpf" },
	{ "script interpreter", script },
	{ "binfmt_misc", binfmt_misc },
	{ 0 },
};
