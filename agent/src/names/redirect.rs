//! BPF programs that redirect packets for the name server's address and port to the relay's ports,
//! invisibly to the process that sends them.
//!
//! If the relay listened on port 53 itself, no container could have a name server of its own on all
//! addresses. A netfilter rule would redirect too, but containers may have rules of their own.
//! These programs rewrite the address that a process passes to the kernel (`struct bpf_sock_addr`,
//! `<linux/bpf.h>`).

use std::io;
use std::os::fd::BorrowedFd;

use rvm_protocol::names::{PORT, SERVER};
use rvm_sys::bpf::{Assembler, AssemblyError, AttachPoint, Program, Register};

/// Offsets in `struct bpf_sock_addr`.
const ADDRESS: i16 = 4;
const PORT_OF: i16 = 24;
const SOCKET_TYPE: i16 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Stream = 1,
    Datagram = 2,
}

const RESULT: Register = Register::R0;
const CONTEXT: Register = Register::R1;
const SCRATCH: Register = Register::R2;

/// The relay's ports on the name server's address.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub udp: u16,
    pub tcp: u16,
}

/// Redirects what the processes of a cgroup send.
pub fn install(ports: Ports, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let attach = |program: Result<Program, AssemblyError>, point| {
        let program = program.map_err(io::Error::other)?.load(point)?;
        program.attach_to_cgroup(cgroup).map_err(io::Error::from)
    };
    let datagrams = || replace(PORT, ports.udp, Socket::Datagram);
    let streams = replace(PORT, ports.tcp, Socket::Stream);
    attach(datagrams(), AttachPoint::CGROUP_CONNECT4)?;
    attach(streams, AttachPoint::CGROUP_CONNECT4)?;
    attach(datagrams(), AttachPoint::CGROUP_SENDMSG4)?;
    // Some resolvers accept an answer only from the address that they asked.
    let answers = replace(ports.udp, PORT, Socket::Datagram);
    attach(answers, AttachPoint::CGROUP_RECVMSG4)
}

/// Replaces a port of the server's address by another, and allows every packet.
fn replace(from: u16, to: u16, socket: Socket) -> Result<Program, AssemblyError> {
    let mut program = Assembler::new();
    let answer = program.label();
    program
        .load_word(SCRATCH, CONTEXT, ADDRESS)
        .jump_if_not_equal32(SCRATCH, i32::from_ne_bytes(SERVER.octets()), answer)
        .load_word(SCRATCH, CONTEXT, PORT_OF)
        .jump_if_not_equal32(SCRATCH, i32::from(from.to_be()), answer)
        .load_word(SCRATCH, CONTEXT, SOCKET_TYPE)
        .jump_if_not_equal32(SCRATCH, socket as i32, answer)
        .move_immediate(SCRATCH, i32::from(to.to_be()))
        .store_word(CONTEXT, PORT_OF, SCRATCH)
        .place(answer)
        .move_immediate(RESULT, 1)
        .exit();
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sys::bpf::opcode::JUMP_IF_NOT_EQUAL32;

    #[test]
    fn every_jump_ends_where_the_answer_is_given() {
        let program = replace(53, 4000, Socket::Stream).unwrap();
        let program = program.instructions();
        let answer = program.len() - 2;
        for (index, step) in program.iter().enumerate() {
            if step.code == JUMP_IF_NOT_EQUAL32 {
                assert_eq!(index + 1 + step.offset as usize, answer);
            }
        }
    }
}
