//! A program that the kernel asks in a network namespace which socket a new connection is for
//! (`BPF_PROG_TYPE_SK_LOOKUP`, see the kernel's Documentation/bpf/prog_sk_lookup.rst; from Linux 5.9
//! on). Ours gives every TCP connection to 127.0.0.1 to one listening socket, whatever its port.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands of bpf(2), by `enum bpf_cmd` of `<linux/bpf.h>`.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

/// `BPF_MAP_TYPE_SOCKMAP`, `BPF_PROG_TYPE_SK_LOOKUP` and `BPF_SK_LOOKUP`.
const SOCKET_MAP: u32 = 15;
const PROGRAM_TYPE: u32 = 30;
const ATTACH_TYPE: u32 = 36;

/// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;

/// Functions of the kernel's: `bpf_map_lookup_elem`, `bpf_sk_release`, `bpf_sk_assign`.
const LOOK_UP: i32 = 1;
const RELEASE: i32 = 86;
const ASSIGN: i32 = 124;

/// 127.0.0.1 as it is on the wire.
const LOCALHOST: i32 = i32::from_ne_bytes([127, 0, 0, 1]);

/// The verdict that lets the lookup go on, with the socket if one was assigned.
const PASS: i32 = 1;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// The program is called as long as this lives.
#[derive(Debug)]
pub struct Lookup {
    _link: OwnedFd,
}

impl Lookup {
    /// Gives `listener`, which is in the namespace, the connections to 127.0.0.1 in it.
    pub fn attach(namespace: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<Self> {
        let map = map_of(listener)?;
        let program = load(&program(map.as_raw_fd()))?;
        let link = bpf(
            LINK_CREATE,
            &LinkCreate {
                program: program.as_raw_fd(),
                target: namespace.as_raw_fd(),
                attach_type: ATTACH_TYPE,
                flags: 0,
            },
        )?;
        Ok(Self {
            _link: descriptor(link),
        })
    }
}

/// A map whose only value is the socket.
fn map_of(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = descriptor(bpf(
        MAP_CREATE,
        &MapCreate {
            kind: SOCKET_MAP,
            key_size: 4,
            value_size: 4,
            entries: 1,
            flags: 0,
        },
    )?);
    let (key, value) = (0_u32, listener.as_raw_fd());
    bpf(
        MAP_UPDATE,
        &MapUpdate {
            map: map.as_raw_fd(),
            _pad: 0,
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        },
    )?;
    Ok(map)
}

/// What is not TCP to 127.0.0.1 goes its usual way.
fn program(map: i32) -> [Instruction; 23] {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD_IMMEDIATE: u8 = 0x62;
    const LOAD_DOUBLE_IMMEDIATE: u8 = 0x18;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const ADD_IMMEDIATE: u8 = 0x07;
    const JUMP_IF_NOT_EQUAL32: u8 = 0x56;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// In the place of a source register: the constant is a descriptor of a map's.
    const MAP_BY_DESCRIPTOR: u8 = 1;
    let load = |offset| instruction(LOAD_WORD, 2, 6, offset, 0);
    let unless = |value, skip| instruction(JUMP_IF_NOT_EQUAL32, 2, 0, skip, value);
    let call = |function| instruction(CALL, 0, 0, 0, function);
    [
        instruction(MOVE, 6, 1, 0, 0),
        load(PROTOCOL),
        unless(libc::IPPROTO_TCP, 18),
        load(FAMILY),
        unless(libc::AF_INET, 16),
        load(LOCAL_IP4),
        unless(LOCALHOST, 14),
        // The key 0, on the stack.
        instruction(STORE_WORD_IMMEDIATE, 10, 0, -4, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, -4),
        instruction(LOAD_DOUBLE_IMMEDIATE, 1, MAP_BY_DESCRIPTOR, 0, map),
        instruction(0, 0, 0, 0, 0),
        call(LOOK_UP),
        instruction(JUMP_IF_EQUAL, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 0, 0, 0),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        call(ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        call(RELEASE),
        // Every jump leads here.
        instruction(MOVE_IMMEDIATE, 0, 0, 0, PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        kind: PROGRAM_TYPE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type: ATTACH_TYPE,
    };
    bpf(PROGRAM_LOAD, &attributes).map(descriptor)
}

/// The heads of `union bpf_attr`.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
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
struct ProgramLoad {
    kind: u32,
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
struct LinkCreate {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes and all they point to live across the call, which copies them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match i32::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor(fd: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just made it, and it is nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_ends_where_the_verdict_is_given() {
        let program = program(3);
        let verdict = program.len() - 2;
        for (index, step) in program.iter().enumerate() {
            if [0x56, 0x15].contains(&step.code) {
                assert_eq!(index + 1 + step.offset as usize, verdict);
            }
        }
    }
}
