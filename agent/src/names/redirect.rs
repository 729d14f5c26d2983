//! What a process sends to the name server's address and port goes to the relay's ports, without
//! the process noticing.
//!
//! Were the relay to listen on port 53 itself, no container could have a name server of its own on
//! all addresses. A rule of netfilter would do too, but containers may have rules of their own. These
//! programs act where a process names an address (`struct bpf_sock_addr`, `<linux/bpf.h>`).

use std::os::fd::BorrowedFd;

use rustix::io;
use rvm_protocol::names::{PORT, SERVER};

use crate::sys::bpf::opcode::{EXIT, JUMP_IF_NOT_EQUAL32, LOAD_WORD, MOVE_IMMEDIATE, STORE_WORD};
use crate::sys::bpf::{Hook, Instruction, attach, instruction};

/// Offsets in `struct bpf_sock_addr`.
const ADDRESS: i16 = 4;
const PORT_OF: i16 = 24;
const SOCKET_TYPE: i16 = 32;

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Stream = 1,
    Datagram = 2,
}

/// Registers: the result, the context, and one to compare with.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 2;

/// Where the relay listens, on the name server's address.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For datagrams.
    pub udp: u16,
    /// For connections.
    pub tcp: u16,
}

/// Redirects what the processes of a control group send.
pub fn install(ports: Ports, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let datagrams = replace(PORT, ports.udp, Socket::Datagram);
    let streams = replace(PORT, ports.tcp, Socket::Stream);
    attach(&datagrams, Hook::CONNECT4, cgroup)?;
    attach(&streams, Hook::CONNECT4, cgroup)?;
    attach(&datagrams, Hook::SEND4, cgroup)?;
    // Some resolvers take an answer only from where they asked.
    let answers = replace(ports.udp, PORT, Socket::Datagram);
    attach(&answers, Hook::RECEIVE4, cgroup)
}

/// Replaces a port of the server's address by another, and always says yes.
fn replace(from: u16, to: u16, socket: Socket) -> [Instruction; 10] {
    let is_not = |value: i32, skip: i16| instruction(JUMP_IF_NOT_EQUAL32, SCRATCH, 0, skip, value);
    let load = |offset: i16| instruction(LOAD_WORD, SCRATCH, CONTEXT, offset, 0);
    [
        load(ADDRESS),
        is_not(i32::from_ne_bytes(SERVER.octets()), 6),
        load(PORT_OF),
        is_not(i32::from(from.to_be()), 4),
        load(SOCKET_TYPE),
        is_not(socket as i32, 2),
        instruction(MOVE_IMMEDIATE, SCRATCH, 0, 0, i32::from(to.to_be())),
        instruction(STORE_WORD, CONTEXT, SCRATCH, PORT_OF, 0),
        instruction(MOVE_IMMEDIATE, RESULT, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_ends_where_the_answer_is_given() {
        let program = replace(53, 4000, Socket::Stream);
        let answer = program.len() - 2;
        for (index, step) in program.iter().enumerate() {
            if step.code == JUMP_IF_NOT_EQUAL32 {
                assert_eq!(index + 1 + step.offset as usize, answer);
            }
        }
    }
}
