"""Debian's kernel for machines that tests and benches start, and the archive that it boots from."""

import fcntl
import glob
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

# The first of these packages that the package sources offer is the kernel's.
METAPACKAGES = ["linux-image-6.12-amd64", "linux-image-amd64"]

# Loaded from the initramfs: modules for the root file system, KVM and container networks. Others
# load on demand.
MODULES = ["9pnet_virtio", "9p", "overlay", "kvm-amd", "tun", "veth", "sch_ingress", "cls_u32",
           "act_mirred", "fuse"]


class Failure(Exception):
    """The machine could not be prepared or did not come up."""


def say(message):
    print(f"nested: {message}", file=sys.stderr, flush=True)


class Kernel:
    """A Debian kernel, fetched and unpacked into the cache once, never installed."""

    def __init__(self):
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.cache = os.path.join(os.environ.get("RVM_CACHE") or os.path.join(base, "rvm"), "nested")
        os.makedirs(self.cache, exist_ok=True)
        package = self.find_package()
        self.directory = os.path.join(self.cache, package)
        self.image = os.path.join(self.directory, "vmlinux")
        with open(os.path.join(self.cache, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(self.directory):
                self.prepare(package)
        (self.modules,) = glob.glob(os.path.join(self.directory, "lib/modules/*"))
        self.release = os.path.basename(self.modules)

    @staticmethod
    def find_package():
        for metapackage in METAPACKAGES:
            shown = subprocess.run(["apt-cache", "depends", "--important", metapackage],
                                   capture_output=True, text=True)
            found = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
            if found:
                return found[1]
        raise Failure(f"no package source offers {' or '.join(METAPACKAGES)}; apt-get update?")

    def prepare(self, package):
        say(f"fetching {package}")
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="unpack.") as work:
            checked(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=work)
            (deb,) = glob.glob(os.path.join(work, "*.deb"))
            tree = os.path.join(work, "tree")
            checked(["dpkg-deb", "-x", deb, tree])
            (image,) = glob.glob(os.path.join(tree, "boot/vmlinuz-*"))
            with open(image, "rb") as packed, open(os.path.join(tree, "vmlinux"), "wb") as plain:
                plain.write(extract_vmlinux(packed.read()))
            self.decompress_modules(tree, image.split("vmlinuz-")[1])
            os.rename(tree, self.directory)

    @staticmethod
    def decompress_modules(tree, release):
        """Those that every machine loads: decompressing them there takes seconds."""
        checked(["depmod", "-b", tree, release])
        for path in dependencies(tree, release, MODULES):
            if path.endswith(".xz"):
                checked(["xz", "-d", path])
        checked(["depmod", "-b", tree, release])


def dependencies(tree, release, names):
    """The files of these modules and of those they need, in loading order."""
    shown = checked(["modprobe", "-d", tree, "-S", release, "--show-depends", "-a", *names])
    paths = [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(paths))


def checked(command, **how):
    done = subprocess.run(command, capture_output=True, text=True, **how)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def extract_vmlinux(image):
    """The ELF file inside a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset,
    payload_length). QEMU enters it directly, which saves decompressing it in software emulation."""
    start = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset:][:length - 4]  # the last four bytes are the length unpacked
    unpacked = subprocess.run(["zstd", "-d", "-c"], input=payload, capture_output=True)
    if unpacked.returncode:
        raise Failure(f"the kernel does not unpack: {unpacked.stderr.decode().strip()}")
    return unpacked.stdout


def busybox():
    path = shutil.which("busybox")
    if path is None:
        raise Failure("busybox is missing (package busybox-static)")
    return path


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Cpio:
    """An archive in the kernel's "newc" format (Documentation/driver-api/early-userspace)."""

    def __init__(self):
        self.parts = []
        self.inode = 0

    def add(self, name, data, mode):
        self.inode += 1
        name = name.encode() + b"\0"
        fields = [self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.parts += [padded(header + name), padded(data)]

    def to_bytes(self):
        self.add("TRAILER!!!", b"", 0)
        return b"".join(self.parts)

    def to_memory(self):
        file = os.fdopen(os.memfd_create("initramfs"), "wb")
        file.write(self.to_bytes())
        file.flush()
        return file


def padded(data):
    return data + b"\0" * (-len(data) % 4)
