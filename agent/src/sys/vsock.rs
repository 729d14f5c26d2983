//! AF_VSOCK sockets, for which rustix has no address type.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io;
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket_with};

use super::check;

pub const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;

/// Listens on a port of every context id the guest has. The socket is non-blocking.
pub fn listen_on(port: u32, backlog: i32) -> io::Result<OwnedFd> {
    let socket = vsock(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let address = address(ANY_CID, port);
    // SAFETY: the address lives across the call and its length is its own.
    check(libc::c_long::from(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH)
    }))?;
    listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects, and waits for the answer.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock(SocketFlags::CLOEXEC)?;
    let address = address(cid, port);
    // SAFETY: the address lives across the call and its length is its own.
    check(libc::c_long::from(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH)
    }))?;
    Ok(socket)
}

/// Whether a connection comes from the host.
pub fn peer_is_host(socket: BorrowedFd<'_>) -> bool {
    let mut address = address(0, 0);
    let mut length = LENGTH;
    // SAFETY: the address and its length live across the call, and the length is its own.
    let named = unsafe {
        libc::getpeername(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let is_vsock = address.svm_family == libc::AF_VSOCK as libc::sa_family_t;
    named == 0 && is_vsock && address.svm_cid == HOST_CID
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn vsock(flags: SocketFlags) -> io::Result<OwnedFd> {
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}
