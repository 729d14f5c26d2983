"""What file operations, and programs whose work is with files, cost on an ext4 in the host's memory: in
a container of runc, in guests of the same kernel on QEMU, and in containers of rvm, shared or as a disk of
the machine; and on a tmpfs, whose part of the cost is small. Each figure is the elapsed time of the same
program in nanoseconds."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile

import guest
import root

RUNC = "runc"
RUNC_TMPFS = "runc, tmpfs"
BLK = "QEMU's virtio-blk"
VIRTIOFSD = "virtiofsd behind QEMU"
NINEP = "QEMU's 9p"
SHARED = "rvm, shared"
SHARED_TMPFS = "rvm, shared tmpfs"
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

# The same of programs. A transaction on a shared ext4 waits for what a sync of it costs the host.
PROGRAM_GOALS = {
    ("sqlite, a WAL transaction", SHARED_TMPFS): 400,
    ("sqlite, a WAL transaction", DISK): 415,
    ("python3 -c pass, cold", SHARED): 55_000,
    ("python3 -c pass, cold", DISK): 49_000,
}


class Operations:
    """One file operation after the other, on a volume at /data."""

    name, title = "files", "operations on files"
    IMAGE_MIB = 256

    def __init__(self, program):
        self.program = program
        self.in_container = ("/bin/inside", "file-costs", "/data")
        self.in_guest = "/inside file-costs /data"

    def fill(self, directory):
        """The volume is empty."""

    def configure(self, sandbox, source, kind):
        shutil.copy(self.program, os.path.join(sandbox.bundle, "rootfs/bin/inside"))
        sandbox.configure(*self.in_container, volume=(source, kind))


class Programs:
    """Programs of Debian's, which are in the root with all that they work on."""

    name, title = "programs", "programs that work with files"
    IMAGE_MIB = 512

    def __init__(self, program, mib):
        """They read and write a file of so many MiB beside."""
        self.program = program
        self.in_container = ("/bin/inside", "program-costs", "/work", str(mib))
        self.in_guest = guest.CHROOT.format(command=" ".join(self.in_container))

    def fill(self, directory):
        root.make(directory, self.program)

    def configure(self, sandbox, source, kind):
        sandbox.configure(*self.in_container, root=source)


class Costs:
    """Does a work, with its own files each time, beside each peer."""

    def __init__(self, work, sandbox, machine):
        self.work, self.sandbox, self.machine = work, sandbox, machine
        self.pristine = self.ext4()

    def of(self, peer):
        """Nanoseconds by operation."""
        image = os.path.join(self.sandbox.work, "image")
        subprocess.run(["cp", "--sparse=always", self.pristine, image], check=True)
        said = peer(image)
        os.remove(image)
        figures = dict(parsed(said))
        if not figures or "panicked" in said:
            raise SystemExit(f"bench: the costs of files were not measured: {said}")
        return figures

    def runc(self, image):
        return self.in_container(["runc"], image, shared=True)

    def runc_tmpfs(self, image):
        return self.in_container(["runc"], image, shared=True, tmpfs=True)

    def shared_tmpfs(self, image):
        return self.in_container(self.sandbox.command, image, shared=True, tmpfs=True)

    def shared(self, image):
        return self.in_container(self.sandbox.command, image, shared=True)

    def disk(self, image):
        return self.in_container(self.sandbox.command, image, shared=False)

    def virtio_blk(self, image):
        return self.machine.on_disk(image, self.work.in_guest)

    def virtiofsd(self, image, server):
        with mounted(image, self.sandbox.work) as directory:
            return self.machine.on_virtiofsd(server, directory, self.work.in_guest)

    def ninep(self, image):
        with mounted(image, self.sandbox.work) as directory:
            return guest.on_9p(self.work.program, self.sandbox.work, self.machine.options,
                               directory, self.work.in_guest)

    def in_container(self, runtime, image, shared, tmpfs=False):
        with contextlib.ExitStack() as stack:
            source, kind = image, "ext4"
            if shared:
                source, kind = stack.enter_context(mounted(image, self.sandbox.work)), "bind"
            if tmpfs:
                source = stack.enter_context(copied(source, self.sandbox.work))
            self.work.configure(self.sandbox, source, kind)
            return guest.output([*runtime, "run", "--bundle", self.sandbox.bundle, "bench"])

    def ext4(self):
        """An image with all that the work needs."""
        image = os.path.join(self.sandbox.work, f"{self.work.name}.ext4")
        with open(image, "wb") as file:
            file.truncate(self.work.IMAGE_MIB << 20)
        with tempfile.TemporaryDirectory(dir=self.sandbox.work) as content:
            os.chmod(content, 0o755)
            self.work.fill(content)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-d", content, image], check=True)
        return image


@contextlib.contextmanager
def mounted(image, work):
    """The image's files in a directory of the host."""
    directory = os.path.join(work, "mounted")
    os.makedirs(directory, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@contextlib.contextmanager
def copied(source, work):
    """The same files in the tmpfs that all this is in."""
    with tempfile.TemporaryDirectory(dir=work) as directory:
        subprocess.run(["cp", "--archive", f"{source}/.", directory], check=True)
        yield directory


def parsed(text):
    for line in text.splitlines():
        if match := re.match(r"(.+): (\d+)\r?$", line):
            yield match[1], int(match[2])
