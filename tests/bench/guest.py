"""QEMU's own machines, with which rvm's are compared."""

import contextlib
import os
import subprocess
import sys
import time

import rvm

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.append(os.path.join(HERE, "../nested"))
import debian  # noqa: E402

# Options that a plain QEMU shares with the one that rvm starts.
MACHINE_OPTIONS = ("-M", "-accel", "-cpu", "-smp", "-m")

# How long a server may take until it listens.
SERVER_SECONDS = 30

# Mounts the files, runs the command and says on the console what it said.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir /dev /proc /data
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in /modules/*; do /bin/busybox insmod "$module" 2>/dev/null; done
/bin/busybox mount {mount} /data
export PATH=/usr/bin:/bin
({command}) >/dev/{console} 2>&1
/bin/busybox umount /data
/bin/busybox reboot -f
"""

# Has the files as its root, with what a container has in it.
CHROOT = """/bin/busybox mount --bind /dev /data/dev
    /bin/busybox mount -t proc proc /data/proc
    /bin/busybox chroot /data {command}
    /bin/busybox umount /data/dev /data/proc"""


class Guest:
    """A guest of a kernel on QEMU that runs /inside, one of the tests' own programs."""

    def __init__(self, kernel, program, work, options, arguments):
        self.kernel, self.program, self.work = kernel, program, work
        self.options, self.arguments = options, arguments

    def on_disk(self, image, command):
        """Runs the command with the files of an ext4 on virtio-blk in /data; its output."""
        return self.run("-t ext4 /dev/vda", command,
                        ["-drive", f"id=disk,if=none,format=raw,file={image}",
                         "-device", "virtio-blk-device,drive=disk"])

    def on_virtiofsd(self, server, directory, command):
        """The same with the files of a directory, through virtiofsd."""
        path = os.path.join(self.work, "virtiofsd.sock")
        with serving([server, "--socket-path", path, "--shared-dir", directory], path):
            return self.run("-t virtiofs data", command,
                            ["-chardev", f"socket,id=files,path={path}",
                             "-device", "vhost-user-fs-device,chardev=files,tag=data",
                             "-global", "virtio-mmio.force-legacy=false",
                             *shared_memory(self.options)])

    def run(self, mount, command, devices):
        archive = initramfs(self.program, self.work,
                            INIT.format(mount=mount, command=command, console="hvc0"))
        return output(["qemu-system-x86_64", *self.options, *QUIET, "-kernel", self.kernel,
                       "-initrd", archive, "-append", f"console=hvc0 {self.arguments}",
                       "-chardev", "stdio,id=console", "-device", "virtio-serial-device",
                       "-device", "virtconsole,chardev=console", *devices])


QUIET = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]


def on_9p(program, work, options, directory, command):
    """Runs the command with the files of a directory, through QEMU's 9p. The kernel of rvm's guests
    has no 9p, so the guest's is Debian's, on the machine that it is made for."""
    kernel = debian.Kernel()
    paths = debian.dependencies(kernel.directory, kernel.release, ["9pnet_virtio", "9p"])
    mount = "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap data"
    archive = initramfs(program, work,
                        INIT.format(mount=mount, command=command, console="ttyS0"), paths)
    same = [word for pair in zip(options, options[1:]) for word in pair
            if pair[0] in ("-accel", "-cpu", "-smp", "-m")]
    return output(["qemu-system-x86_64", "-M", "q35", *same, *QUIET, "-serial", "stdio",
                   "-kernel", kernel.image, "-initrd", archive,
                   "-append", "quiet panic=-1 tsc=reliable no_timer_check",
                   "-fsdev", f"local,id=data,path={directory},security_model=passthrough",
                   "-device", "virtio-9p-pci,fsdev=data,mount_tag=data"])


@contextlib.contextmanager
def serving(command, path):
    """A server that listens on this socket, and ends when its client does."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + SERVER_SECONDS
            while not os.path.exists(path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"bench: {command[0]} does not listen")
                time.sleep(0.05)
            yield
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def shared_memory(options):
    """Options for memory of the same size that another process can map."""
    size = options[options.index("-m") + 1]
    return ["-object", f"memory-backend-memfd,id=shared,size={size}M,share=on",
            "-machine", "memory-backend=shared"]


def initramfs(program, work, init, modules=()):
    """busybox, one of the tests' programs as /inside, a script as init, and modules of a kernel in
    the order in which they load."""
    files = {"init": init.encode(), "inside": debian.read(program),
             "bin/busybox": debian.read(debian.busybox())}
    for number, path in enumerate(modules):
        files[f"modules/{number:02}-{os.path.basename(path)}"] = debian.read(path)
    return archive_of(files, work)


def archive_of(files, work):
    """An initramfs of programs by name; its path."""
    archive, path = debian.Cpio(), os.path.join(work, "initramfs")
    for folder in ("bin", "modules"):
        archive.add(folder, b"", 0o40755)
    for name, content in files.items():
        archive.add(name, content, 0o100755)
    with open(path, "wb") as file:
        file.write(archive.to_bytes())
    return path


def bare(words, dist, work):
    """The command of the machine of this QEMU without its devices. Its guest's init writes the mark
    and switches off."""
    init = os.path.join(work, "init")
    source = f""".globl _start
        _start: mov $172,%eax; mov $3,%edi; syscall # iopl(3)
                mov $0x3f8,%edx; mov $mark,%rsi; mov ${len(rvm.MARK)},%ecx; rep outsb
                mov $0xf4,%edx; xor %eax,%eax; outb %al,%dx
        mark:   .ascii "{rvm.MARK.decode()}"\n"""
    subprocess.run(["gcc", "-x", "assembler", "-nostdlib", "-static", "-o", init, "-"],
                   input=source, text=True, check=True)
    archive = archive_of({"init": debian.read(init)}, work)
    return ["qemu-system-x86_64", *QUIET, "-serial", "stdio",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
            "-kernel", os.path.join(dist, "share/rvm/vmlinux"), "-initrd", archive,
            "-append", kernel_arguments(words), *machine_options(words)]


def machine_options(words):
    options = []
    for option, value in zip(words, words[1:]):
        if option in MACHINE_OPTIONS or value.startswith("memory-backend"):
            options += [option, value]
    return options


def kernel_arguments(words):
    return words[words.index("-append") + 1]


def output(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                          check=True).stdout
