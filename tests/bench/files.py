"""What file operations cost on an ext4 of the host's memory: in a container of runc, in a guest of the
same kernel on QEMU's virtio-blk, and in containers of rvm, shared or as a disk of the machine. Each
figure is the elapsed time of the same program."""

import contextlib
import os
import re
import shutil
import subprocess

import network

SHARED = "rvm, shared"
DISK = "rvm, a disk"

# The most that an operation may cost, in thousand instructions.
GOALS = {
    ("create, write, close", SHARED): 200,
    ("create, write, close", DISK): 60,
    ("open, read, close, warm", SHARED): 30,
    ("open, read, close, warm", DISK): 10,
    ("unlink", SHARED): 100,
    ("unlink", DISK): 40,
    ("stat, cold", SHARED): 60,
    ("stat, cold", DISK): 16,
}

# Of the image on which each has its files.
IMAGE_MIB = 256

INIT = """#!/bin/busybox sh
/bin/busybox mkdir /dev /proc /data
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t ext4 /dev/vda /data
/inside file-costs /data >/dev/hvc0 2>&1
/bin/busybox umount /data
/bin/busybox reboot -f
"""


def nanoseconds(sandbox, kernel, program, engine_options, kernel_arguments):
    """By peer, nanoseconds by operation."""
    peers = {
        "runc": lambda image: on_the_host(sandbox, ["runc"], program, image),
        "virtio-blk": lambda image: on_virtio_blk(kernel, program, image, sandbox.work, engine_options,
                                                  kernel_arguments),
        SHARED: lambda image: on_the_host(sandbox, sandbox.command, program, image),
        DISK: lambda image: in_container(sandbox, sandbox.command, program, image, "ext4"),
    }
    figures = {}
    for name, measure in peers.items():
        with ext4(sandbox.work) as image:
            figures[name] = dict(parsed(measure(image)))
    return figures


def parsed(text):
    for line in text.splitlines():
        if match := re.match(r"(.+): (\d+)\r?$", line):
            yield match[1], int(match[2])


@contextlib.contextmanager
def ext4(work):
    image = os.path.join(work, "image")
    with open(image, "wb") as file:
        file.truncate(IMAGE_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    try:
        yield image
    finally:
        os.remove(image)


def on_the_host(sandbox, runtime, program, image):
    """With the image mounted by the host."""
    mounted = os.path.join(sandbox.work, "mounted")
    os.makedirs(mounted, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        return in_container(sandbox, runtime, program, mounted, "bind")
    finally:
        subprocess.run(["umount", mounted], check=True)


def in_container(sandbox, runtime, program, source, kind):
    shutil.copy(program, os.path.join(sandbox.bundle, "rootfs/bin/inside"))
    sandbox.configure("/bin/inside", "file-costs", "/data", volume=(source, kind))
    return output([*runtime, "run", "--bundle", sandbox.bundle, "bench"])


def on_virtio_blk(kernel, program, image, work, engine_options, kernel_arguments):
    return output(["qemu-system-x86_64", *engine_options, "-nodefaults", "-no-user-config",
                   "-display", "none", "-no-reboot", "-kernel", kernel,
                   "-initrd", network.initramfs(program, work, INIT),
                   "-append", f"console=hvc0 {kernel_arguments}",
                   "-chardev", "stdio,id=console", "-device", "virtio-serial-device",
                   "-device", "virtconsole,chardev=console",
                   "-drive", f"id=disk,if=none,format=raw,file={image}",
                   "-device", "virtio-blk-device,drive=disk"])


def output(command):
    return subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                          check=True).stdout
