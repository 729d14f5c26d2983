"""rvm as the benches drive it: a bundle of busybox, a container in it, and the memory it costs."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time


class Rvm:
    """An installation, with a state root and a bundle of its own."""

    def __init__(self, dist, engine, work, templates="auto", map_layers=True):
        self.work = work
        self.bundle = os.path.join(work, "bundle")
        config = os.path.join(work, "config.toml")
        self.command = [os.path.join(dist, "bin/rvm"), "--root", os.path.join(work, "state"),
                        "--config", config, "--engine", engine]
        self.make_rootfs()
        with open(config, "w") as file:
            print(f'templates = "{templates}"', file=file)
            print(f"map_layers = {str(map_layers).lower()}", file=file)

    def make_rootfs(self):
        directory = os.path.join(self.bundle, "rootfs/bin")
        os.makedirs(directory)
        shutil.copy(shutil.which("busybox"), directory)
        for applet in ("true", "echo", "cat", "dd", "sleep", "sh"):
            os.symlink("busybox", os.path.join(directory, applet))

    def configure(self, *args, network=None, volume=None, root=None, memory=None):
        """The bundle runs these arguments, in the network namespace at this path or a new one, with
        this volume, its source and its type, as /data, with this directory or image as its root,
        with so many MiB of memory, which /dev/shm may fill. What `runc spec` writes, without a
        terminal; with a volume or a root, the caches may be dropped."""
        path = os.path.join(self.bundle, "config.json")
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        subprocess.run(["runc", "spec"], cwd=self.bundle, check=True)
        with open(path) as file:
            config = json.load(file)
        config["process"]["args"] = list(args)
        config["process"]["terminal"] = False
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network" and network:
                namespace["path"] = network
        if memory:
            config["linux"]["resources"]["memory"] = {"limit": memory << 20}
            for mount in config["mounts"]:
                if mount["destination"] == "/dev/shm":
                    mount["options"] = ["mode=1777"]
        if volume:
            source, kind = volume
            options = ["rbind", "rw"] if kind == "bind" else ["rw"]
            config["mounts"].append({"destination": "/data", "type": kind, "source": source,
                                     "options": options})
        if root:
            config["root"] = {"path": root}
        if volume or root:
            del config["linux"]["readonlyPaths"]
        with open(path, "w") as file:
            json.dump(config, file)

    def run(self, *args, network=None):
        """The command that runs a container with these arguments in the foreground."""
        self.configure(*args, network=network)
        return [*self.command, "run", "--bundle", self.bundle, "bench"]

    @contextlib.contextmanager
    def idle(self):
        """A container that sleeps; yields the pid of its monitor."""
        self.configure("sleep", "1000000")
        null = subprocess.DEVNULL
        subprocess.run([*self.command, "run", "--detach", "--bundle", self.bundle, "bench"],
                       stdin=null, stdout=null, stderr=null, check=True)
        try:
            yield self.monitor("bench")
        finally:
            subprocess.run([*self.command, "delete", "--force", "bench"], check=True)

    def monitor(self, id):
        """The pid of a container's monitor."""
        state = subprocess.run([*self.command, "state", id], capture_output=True, check=True)
        return json.loads(state.stdout)["pid"]


# The kinds of memory of a sandbox on the kvm engine.
KINDS = ("monitor", "rvm-vmm", "guest", "kernel")


def memory_by_count(sandbox, counts, args=("sleep", "1000000"), root=None):
    """What the host has less of for one of so many idle containers, in KiB by kind, for each of these
    growing counts. What they share, such as programs and a template, is there before."""
    sandbox.configure(*args, root=root)
    null = subprocess.DEVNULL
    ids, figures = [], []
    before = available()
    try:
        for count in counts:
            while len(ids) < count:
                ids.append(f"bench{len(ids)}")
                subprocess.run([*sandbox.command, "run", "--detach", "--bundle", sandbox.bundle,
                                ids[-1]], stdin=null, stdout=null, stderr=null, check=True)
            time.sleep(SETTLE_SECONDS)
            kinds = dict.fromkeys(KINDS, 0)
            for id in ids:
                add_private(kinds, sandbox.monitor(id))
            kinds["kernel"] = before - available() - sum(kinds.values())
            figures.append((count, {kind: kib / count for kind, kib in kinds.items()}))
        return figures
    finally:
        for id in ids:
            subprocess.run([*sandbox.command, "delete", "--force", id], stderr=null)


def add_private(kinds, monitor):
    """Adds what the processes of a sandbox have to themselves."""
    for pid in family(monitor):
        own, guest = split_memory(pid, "Anonymous")
        kinds["monitor" if pid == monitor else "rvm-vmm"] += own
        kinds["guest"] += guest


def available():
    """MemAvailable in KiB, without what the kernel keeps of earlier work."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    with open("/proc/meminfo") as file:
        return int(re.search(r"MemAvailable: +([0-9]+)", file.read()).group(1))


@contextlib.contextmanager
def scratch():
    """A directory in memory, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rvm-bench.", dir="/dev/shm") as work:
        yield work


# What an idle guest takes to give back the memory that its start no longer needs.
SETTLE_SECONDS = 5


def idle_memory(monitor):
    """KiB by process, (name, KiB) in the order of their start, and what the guest touched."""
    time.sleep(SETTLE_SECONDS)
    processes, touched = [], 0
    for pid in family(monitor):
        own, guest = split_memory(pid)
        processes.append((name(pid), own))
        touched = max(touched, guest)
    return processes, touched


def family(pid):
    """A process and all of its descendants."""
    pids = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            for child in file.read().split():
                pids += family(int(child))
    return pids


def command_line(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")[:-1]


def name(pid):
    """The program and, for rvm's own, its mode: `rvm-vmm backend`."""
    words = command_line(pid)
    program = os.path.basename(words[0])
    modes = [word for word in words[1:] if word in ("monitor", "machine", "backend")]
    return " ".join([program, *modes[:1]])


def split_memory(pid, measure="Pss"):
    """A process's share of memory (PSS) in KiB, or another measure of proc_pid_smaps(5): its own, and
    that in which its guest lives.

    The guest's memory is what rvm-vmm leaves out of core dumps ("dd") or QEMU has in a memfd."""
    own = guest = kib = 0
    named = False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                named = "/memfd:memory-backend-memfd" in line
            elif line.startswith(f"{measure}:"):
                kib = int(line.split()[1])
            elif line.startswith("VmFlags:"):
                if named or "dd" in line.split():
                    guest += kib
                else:
                    own += kib
    return own, guest


# What the guest of a measured start says; nothing that a kernel or a firmware may say before.
MARK = b"started-3f1c"


def time_to_mark(command):
    """Seconds from the start of a command to its mark. It must then end with 0, or with 1, as QEMU does
    when its guest has switched it off."""
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        said = b""
        while MARK not in said and (more := process.stdout.read1()):
            said += more
        seconds = time.monotonic() - start
        process.stdout.read()
    if MARK not in said or process.returncode not in (0, 1):
        raise SystemExit(f"bench: exit code {process.returncode}: {' '.join(command)}")
    return seconds


def through_cat(rvm, mib):
    """Seconds in which so many MiB pass through `cat` in the container, in and out again."""
    block = os.urandom(1 << 20)
    process = subprocess.Popen(rvm.run("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # The container is there when its first byte is back.
    process.stdin.write(b"x")
    process.stdin.flush()
    process.stdout.read(1)
    start = time.monotonic()
    writer = os.fork()
    if writer == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for _ in range(mib):
            process.stdin.write(block)
        process.stdin.close()
        os._exit(0)
    process.stdin.close()
    received = 0
    while chunk := process.stdout.read1(1 << 20):
        received += len(chunk)
    seconds = time.monotonic() - start
    os.waitpid(writer, 0)
    if process.wait() != 0 or received != mib << 20:
        raise SystemExit(f"bench: {received} of {mib << 20} bytes came back through cat")
    return seconds


def pods(program, dist, engine, runtime, count):
    """Runs so many pods of a runtime's side by side, by containerd: the seconds that one alone and that
    all of them took to run and to be gone again, the KiB of their processes, and those that guests
    touched."""
    environment = {**os.environ, "RVM_DIST": dist, "RVM_TEST_ENGINE": engine}
    with subprocess.Popen([program, runtime, str(count)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=environment) as process:
        figures, memory = json.loads(process.stdout.readline() or "{}"), []
        if figures:
            time.sleep(SETTLE_SECONDS)
            memory = [split_memory(pid) for pid in figures.pop("processes")]
        gone = process.communicate()[0]
    if process.returncode != 0:
        raise SystemExit(f"bench: pods of {runtime}: exit code {process.returncode}")
    own, guest = (sum(column) for column in zip(*memory))
    return {**figures, **json.loads(gone), "own": own, "guest": guest, "count": count}
