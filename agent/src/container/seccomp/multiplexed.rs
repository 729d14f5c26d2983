//! System calls that an i386 program makes in two ways: by a number of their own, since Linux 4.3
//! and
//! 5.1, and through socketcall(2) or ipc(2), whose first argument then selects the call. See
//! syscall_32.tbl, `<linux/net.h>` and `<linux/ipc.h>`. libseccomp gives them negative numbers.

const SOCKETCALL: u32 = 102;
const IPC: u32 = 117;

/// The two ways to make one call.
pub struct Ways {
    /// Its own number; send and recv have none.
    pub own: Option<u32>,
    /// The number of the multiplexer.
    pub through: u32,
    /// The multiplexer's first argument.
    pub selector: u64,
}

/// The ways to make a system call, if it is one of these.
pub fn ways(name: &str) -> Option<Ways> {
    let (own, through, selector) = match name {
        "socket" => (359, SOCKETCALL, 1),
        "bind" => (361, SOCKETCALL, 2),
        "connect" => (362, SOCKETCALL, 3),
        "listen" => (363, SOCKETCALL, 4),
        "accept" => (0, SOCKETCALL, 5),
        "getsockname" => (367, SOCKETCALL, 6),
        "getpeername" => (368, SOCKETCALL, 7),
        "socketpair" => (360, SOCKETCALL, 8),
        "send" => (0, SOCKETCALL, 9),
        "recv" => (0, SOCKETCALL, 10),
        "sendto" => (369, SOCKETCALL, 11),
        "recvfrom" => (371, SOCKETCALL, 12),
        "shutdown" => (373, SOCKETCALL, 13),
        "setsockopt" => (366, SOCKETCALL, 14),
        "getsockopt" => (365, SOCKETCALL, 15),
        "sendmsg" => (370, SOCKETCALL, 16),
        "recvmsg" => (372, SOCKETCALL, 17),
        "accept4" => (364, SOCKETCALL, 18),
        "recvmmsg" => (337, SOCKETCALL, 19),
        "sendmmsg" => (345, SOCKETCALL, 20),
        "semop" => (0, IPC, 1),
        "semget" => (393, IPC, 2),
        "semctl" => (394, IPC, 3),
        "semtimedop" => (0, IPC, 4),
        "msgsnd" => (400, IPC, 11),
        "msgrcv" => (401, IPC, 12),
        "msgget" => (399, IPC, 13),
        "msgctl" => (402, IPC, 14),
        "shmat" => (397, IPC, 21),
        "shmdt" => (398, IPC, 22),
        "shmget" => (395, IPC, 23),
        "shmctl" => (396, IPC, 24),
        _ => return None,
    };
    Some(Ways {
        own: (own != 0).then_some(own),
        through,
        selector,
    })
}
