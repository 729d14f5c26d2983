//! eBPF programs that the kernel calls for the processes of a control group.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io;

use super::check;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// Destination in the low four bits, source in the high.
    pub registers: u8,
    /// Of a jump or a place in memory.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

/// An instruction with these operands.
pub const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// What our programs are made of, by the names of the kernel's instruction set document.
#[expect(missing_docs, reason = "the names say it")]
pub mod opcode {
    pub const LOAD_WORD: u8 = 0x61;
    pub const STORE_WORD: u8 = 0x63;
    pub const MOVE_IMMEDIATE: u8 = 0xb7;
    pub const MOVE_REGISTER: u8 = 0xbf;
    pub const AND32_IMMEDIATE: u8 = 0x54;
    pub const OR32_REGISTER: u8 = 0x4c;
    pub const SHIFT_LEFT32_IMMEDIATE: u8 = 0x64;
    pub const SHIFT_RIGHT32_IMMEDIATE: u8 = 0x74;
    pub const JUMP_IF_NOT_EQUAL32: u8 = 0x56;
    pub const JUMP_IF_EQUAL32: u8 = 0x16;
    pub const EXIT: u8 = 0x95;
}

/// Where a program is called, by `enum bpf_prog_type` and `enum bpf_attach_type` of `<linux/bpf.h>`.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    program_type: u32,
    attach_type: u32,
}

impl Hook {
    /// A device is opened or made.
    pub const DEVICE: Self = Self::new(15, 6);
    /// An IPv4 socket is connected.
    pub const CONNECT4: Self = Self::new(18, 10);
    /// An IPv4 datagram is sent to an address.
    pub const SEND4: Self = Self::new(18, 14);
    /// An IPv4 datagram is received and its sender asked for.
    pub const RECEIVE4: Self = Self::new(18, 19);

    const fn new(program_type: u32, attach_type: u32) -> Self {
        Self {
            program_type,
            attach_type,
        }
    }
}

/// Loads a program and attaches it to a control group, beside those that may be there already.
pub fn attach(program: &[Instruction], hook: Hook, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let program = load(program, hook)?;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attr = AttachAttr {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: hook.attach_type,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes live across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attr,
            size_of::<AttachAttr>(),
        )
    })
    .map(drop)
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
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

/// The head of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction], hook: Hook) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    let attr = LoadAttr {
        program_type: hook.program_type,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        attach_type: hook.attach_type,
        ..LoadAttr::default()
    };
    // SAFETY: the attributes and all they point to live across the call, which copies them.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of::<LoadAttr>(),
        )
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
