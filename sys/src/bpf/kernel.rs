//! bpf(2).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io;

use super::Program;
use crate::check;

/// Commands, `enum bpf_cmd` of `<linux/bpf.h>`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    ProgramLoad = 5,
    ProgramAttach = 8,
    LinkCreate = 28,
}

/// Where the kernel calls a program: `enum bpf_prog_type` and `enum bpf_attach_type` of
/// `<linux/bpf.h>`.
#[derive(Clone, Copy, Debug)]
pub struct AttachPoint {
    program_type: u32,
    attach_type: u32,
}

impl AttachPoint {
    /// A process of a cgroup opens or makes a device.
    pub const CGROUP_DEVICE: Self = Self::new(15, 6);
    /// A process of a cgroup connects an IPv4 socket.
    pub const CGROUP_CONNECT4: Self = Self::new(18, 10);
    /// A process of a cgroup sends an IPv4 datagram to an address.
    pub const CGROUP_SENDMSG4: Self = Self::new(18, 14);
    /// A process of a cgroup asks for the sender of an IPv4 datagram.
    pub const CGROUP_RECVMSG4: Self = Self::new(18, 19);
    /// The kernel looks for the socket of a new connection or datagram in a network namespace; see
    /// its Documentation/bpf/prog_sk_lookup.rst. From Linux 5.9 on.
    pub const SK_LOOKUP: Self = Self::new(30, 36);

    const fn new(program_type: u32, attach_type: u32) -> Self {
        Self {
            program_type,
            attach_type,
        }
    }
}

/// A program that the kernel's verifier has accepted.
#[derive(Debug)]
pub struct LoadedProgram {
    fd: OwnedFd,
    point: AttachPoint,
}

/// Keeps a program attached until it is dropped.
#[derive(Debug)]
pub struct Link {
    _fd: OwnedFd,
}

/// A map (`BPF_MAP_TYPE_SOCKMAP`) whose only value, at key 0, is a socket.
#[derive(Debug)]
pub struct SocketMap(OwnedFd);

impl Program {
    /// Loads the program for `point`. Needs CAP_BPF, and CAP_NET_ADMIN for programs that see
    /// packets.
    pub fn load(&self, point: AttachPoint) -> io::Result<LoadedProgram> {
        let instructions = self.instructions();
        let attributes = ProgramLoad {
            program_type: point.program_type,
            count: u32::try_from(instructions.len()).map_err(|_| io::Errno::TOOBIG)?,
            instructions: instructions.as_ptr() as u64,
            license: c"Apache".as_ptr() as u64,
            attach_type: point.attach_type,
            ..ProgramLoad::default()
        };
        // SAFETY: `attributes` is of this command, and points to as many instructions as it says
        // and to a NUL-terminated string, which both live across the call.
        let fd = unsafe { bpf(Command::ProgramLoad, &attributes) }?;
        // SAFETY: the command has returned a new descriptor.
        let fd = unsafe { owned(fd) };
        Ok(LoadedProgram { fd, point })
    }
}

impl LoadedProgram {
    /// Attaches the program to a cgroup, beside those that may be there already, for as long as the
    /// cgroup exists.
    pub fn attach_to_cgroup(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        const BPF_F_ALLOW_MULTI: u32 = 2;
        let attributes = ProgramAttach {
            target: cgroup.as_raw_fd(),
            program: self.fd.as_raw_fd(),
            attach_type: self.point.attach_type,
            flags: BPF_F_ALLOW_MULTI,
        };
        // SAFETY: `attributes` is of this command and holds integers alone.
        unsafe { bpf(Command::ProgramAttach, &attributes) }.map(drop)
    }

    /// Attaches the program to what `target` refers to (a network namespace for
    /// [`AttachPoint::SK_LOOKUP`]) for as long as the link lives.
    pub fn link(&self, target: BorrowedFd<'_>) -> io::Result<Link> {
        let attributes = LinkCreate {
            program: self.fd.as_raw_fd(),
            target: target.as_raw_fd(),
            attach_type: self.point.attach_type,
            flags: 0,
        };
        // SAFETY: `attributes` is of this command and holds integers alone.
        let fd = unsafe { bpf(Command::LinkCreate, &attributes) }?;
        // SAFETY: the command has returned a new descriptor.
        let fd = unsafe { owned(fd) };
        Ok(Link { _fd: fd })
    }
}

impl SocketMap {
    /// Makes the map of a socket.
    pub fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
        let attributes = MapCreate {
            map_type: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
        };
        // SAFETY: `attributes` is of this command and holds integers alone.
        let fd = unsafe { bpf(Command::MapCreate, &attributes) }?;
        // SAFETY: the command has returned a new descriptor.
        let map = unsafe { owned(fd) };
        let (key, value) = (0_u32, socket.as_raw_fd());
        let attributes = MapUpdate {
            map: map.as_raw_fd(),
            _pad: 0,
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: `attributes` is of this command; key and value are as long as the map was made
        // for and live across the call.
        unsafe { bpf(Command::MapUpdate, &attributes) }?;
        Ok(Self(map))
    }
}

impl AsFd for SocketMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The head of `union bpf_attr` for each command. The kernel takes the rest for zeroes.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[repr(C)]
struct MapUpdate {
    map: i32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct ProgramAttach {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
///
/// `attributes` is the head of `union bpf_attr` for the command, and what it points to lives.
unsafe fn bpf<T>(command: Command, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes live across the call with their own size; the caller vouches for the
    // rest.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    })
}

/// # Safety
///
/// `fd` is a descriptor that nothing else owns.
unsafe fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the caller vouches for it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}
