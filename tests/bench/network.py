"""Data between the host and a guest, over TCP: through the kvm engine's network card and through QEMU's
own, each on a TAP behind an interface of a network namespace, as an engine would give it to a container."""

import contextlib
import os
import shutil
import socket
import statistics
import struct
import subprocess
import time

import guest

# How often each card has its turn, after one that is not counted.
TURNS = 5

# What passes in a turn.
MIB = 16

# The guest's end: `rvm-inside traffic` obeys this host address.
PORT = 5000

DIRECTIONS = {"to the guest": b"r", "from the guest": b"s"}

# Nothing but what the guest needs; the parameters are those of both engines of rvm.
MACHINE = "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,auto-kernel-cmdline=on"
KERNEL_ARGUMENTS = ("quiet panic=-1 reboot=t tsc=reliable no_timer_check noreplace-smp "
                    "lapic_timer_khz=1000000 ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0")

INIT = """#!/bin/busybox sh
/bin/busybox mkdir /dev
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/null 2>&1
/bin/busybox ip addr add 10.0.{number}.2/24 dev eth0
/bin/busybox ip link set eth0 up
/inside traffic 10.0.{number}.1:{port}
/bin/busybox poweroff -f
"""


def seconds_per_mib(sandbox, kernel, traffic):
    """Medians, by direction: (ours, QEMU's)."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(our_card(sandbox, traffic))
        theirs = stack.enter_context(qemus_card(kernel, traffic, sandbox.work))
        seconds = {name: ([], []) for name in DIRECTIONS}
        for turn in range(TURNS + 1):
            for name, order in DIRECTIONS.items():
                for peer, counted in zip((ours, theirs), seconds[name]):
                    passed = pass_through(peer, order)
                    counted += [passed] if turn else []
    return {name: [statistics.median(each) / MIB for each in pair] for name, pair in seconds.items()}


def pass_through(peer, order):
    """Seconds until so many MiB have arrived."""
    block = bytearray(1 << 20)
    start = time.monotonic()
    peer.sendall(order + struct.pack(">I", MIB))
    if order == b"r":
        for _ in range(MIB):
            peer.sendall(block)
        if peer.recv(1) != b"!":
            raise SystemExit("bench: the guest hung up")
    else:
        left = MIB << 20
        while left:
            received = peer.recv_into(block, min(left, len(block)))
            if not received:
                raise SystemExit("bench: the guest hung up")
            left -= received
    return time.monotonic() - start


@contextlib.contextmanager
def our_card(sandbox, traffic):
    """A connection to a container in a machine of rvm's."""
    with namespace(1) as (name, server):
        shutil.copy(traffic, os.path.join(sandbox.bundle, "rootfs/bin/inside"))
        ip("-n", name, "addr", "add", "10.0.1.2/24", "dev", "eth0")
        command = sandbox.run("/bin/inside", "traffic", f"10.0.1.1:{PORT}",
                              network=f"/run/netns/{name}")
        with running(command), connection(server) as peer:
            yield peer


@contextlib.contextmanager
def qemus_card(kernel, traffic, work):
    """A connection to a guest of the same kernel in a machine of QEMU's."""
    with namespace(2) as (name, server):
        ip("-n", name, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        ip("-n", name, "link", "set", "tap0", "up")
        for one, other in [("eth0", "tap0"), ("tap0", "eth0")]:
            tc = ["tc", "-n", name]
            subprocess.run([*tc, "qdisc", "add", "dev", one, "ingress"], check=True)
            subprocess.run([*tc, "filter", "add", "dev", one, "ingress", "protocol", "all", "u32",
                            "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev",
                            other], check=True)
        mac = subprocess.run(["ip", "netns", "exec", name, "cat", "/sys/class/net/eth0/address"],
                             capture_output=True, text=True, check=True).stdout.strip()
        command = ["ip", "netns", "exec", name, "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host",
                   "-m", "512", "-smp", "1", "-M", MACHINE, "-nodefaults", "-no-user-config",
                   "-display", "none", "-no-reboot", "-kernel", kernel, "-initrd",
                   guest.initramfs(traffic, work, INIT.format(number=2, port=PORT)),
                   "-append", KERNEL_ARGUMENTS,
                   "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no",
                   "-device", f"virtio-net-device,netdev=net,mac={mac}"]
        with running(command), connection(server) as peer:
            yield peer


@contextlib.contextmanager
def namespace(number):
    """A network namespace with an interface `eth0` at whose other end is 10.0.NUMBER.1, where a socket
    listens: its name and the socket."""
    name, outside = f"bench{number}", f"bench{number}"
    ip("netns", "add", name)
    try:
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"10.0.{number}.1/24", "dev", outside)
        ip("link", "set", outside, "up")
        ip("-n", name, "link", "set", "eth0", "up")
        with socket.create_server((f"10.0.{number}.1", PORT)) as server:
            yield name, server
    finally:
        ip("netns", "delete", name)


@contextlib.contextmanager
def running(command):
    """A process that ends on its own when its connection does."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@contextlib.contextmanager
def connection(server):
    server.settimeout(60)
    peer, _ = server.accept()
    with peer:
        peer.settimeout(60)
        yield peer


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)
