//! A program that the kernel asks in a network namespace which socket a new connection is for
//! (`BPF_PROG_TYPE_SK_LOOKUP`, see the kernel's Documentation/bpf/prog_sk_lookup.rst; from Linux
//! 5.9 on). Ours gives every TCP connection to 127.0.0.1 to one listening socket, whatever its
//! port.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rvm_sys::bpf::Register::{R0, R1, R2, R3, R6, R7, R10};
use rvm_sys::bpf::{Assembler, AssemblyError, AttachPoint, Link, Program, SocketMap};

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

/// Gives `listener`, which is in the namespace, the connections to 127.0.0.1 in it, for as long as
/// the link lives.
pub fn attach(namespace: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<Link> {
    let map = SocketMap::new(listener)?;
    let program = program(map.as_fd()).map_err(io::Error::other)?;
    Ok(program.load(AttachPoint::SK_LOOKUP)?.link(namespace)?)
}

/// What is not TCP to 127.0.0.1 goes its usual way.
fn program(map: BorrowedFd<'_>) -> Result<Program, AssemblyError> {
    let mut program = Assembler::new();
    let verdict = program.label();
    program.move_register(R6, R1);
    for (field, wanted) in [
        (PROTOCOL, libc::IPPROTO_TCP),
        (FAMILY, libc::AF_INET),
        (LOCAL_IP4, LOCALHOST),
    ] {
        program
            .load_word(R2, R6, field)
            .jump_if_not_equal32(R2, wanted, verdict);
    }
    program
        // The key 0, on the stack.
        .store_word_immediate(R10, -4, 0)
        .move_register(R2, R10)
        .add_immediate(R2, -4)
        .move_map(R1, map)
        .call(LOOK_UP)
        .jump_if_equal(R0, 0, verdict)
        .move_register(R7, R0)
        .move_register(R1, R6)
        .move_register(R2, R0)
        .move_immediate(R3, 0)
        .call(ASSIGN)
        .move_register(R1, R7)
        .call(RELEASE)
        .place(verdict)
        .move_immediate(R0, PASS)
        .exit();
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sys::bpf::opcode::{JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL32};

    #[test]
    fn every_jump_ends_where_the_verdict_is_given() {
        let any = rustix::stdio::stdin();
        let program = program(any).unwrap();
        let program = program.instructions();
        let verdict = program.len() - 2;
        for (index, step) in program.iter().enumerate() {
            if [JUMP_IF_NOT_EQUAL32, JUMP_IF_EQUAL].contains(&step.code) {
                assert_eq!(index + 1 + step.offset as usize, verdict);
            }
        }
    }
}
