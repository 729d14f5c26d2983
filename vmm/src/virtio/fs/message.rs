//! FUSE messages that the device reads and answers itself. Those that are virtiofsd's stay in guest
//! memory.

use std::io;

use rustix::io::Errno;
use virtiofsd::fuse::{InHeader, OutHeader};
use vm_memory::ByteValued;

use super::deferred::Reply;
use crate::virtio::chain::{Buffers, Chain};

/// Operations of linux/fuse.h that virtiofsd does not serve as they are wanted here, and those that
/// are frequent and change nothing.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;

    /// Those of our guest kernel, by a patch in guest-kernel/patches.
    pub const WATCH: u32 = 0x7276_6d01;
    pub const EVENTS: u32 = 0x7276_6d02;
}

/// The header of the message in a chain, unless the message is shorter than a header.
pub fn peek_header(chain: &Chain<'_>) -> Option<InHeader> {
    let mut header = InHeader::default();
    let read = chain.readable.peek(header.as_mut_slice());
    (read == size_of::<InHeader>()).then_some(header)
}

/// Whether a request may change files. It is no loss to take one for another that changes nothing.
pub fn may_change(header: &InHeader) -> bool {
    !matches!(
        header.opcode,
        opcode::LOOKUP
            | opcode::FORGET
            | opcode::GETATTR
            | opcode::READ
            | opcode::READDIR
            | opcode::BATCH_FORGET
            | opcode::READDIRPLUS
    )
}

pub fn is_forget(header: &InHeader) -> bool {
    matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET)
}

/// Whether a request needs room on the disk, or asks how much there is.
pub fn is_about_room(header: &InHeader) -> bool {
    matches!(
        header.opcode,
        opcode::SETATTR
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::WRITE
            | opcode::STATFS
            | opcode::SETXATTR
            | opcode::CREATE
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::TMPFILE
    )
}

/// The error of a request that virtiofsd would panic on: it takes for granted that the answer's
/// header has room, and that a file's offsets are below 2^63 as Linux has them (pread(2): EINVAL).
pub fn check(header: &InHeader, chain: &Chain<'_>) -> Result<(), Errno> {
    match header.opcode {
        opcode::READ | opcode::WRITE => {
            // fuse_read_in and fuse_write_in begin with `u64 fh; u64 offset;`.
            let mut start = [[0; 8]; (size_of::<InHeader>() + 16) / 8];
            chain.readable.peek(start.as_flattened_mut());
            let offset = start[start.len() - 1];
            if i64::try_from(u64::from_ne_bytes(offset)).is_err() {
                return Err(Errno::INVAL);
            }
        }
        opcode::READDIR | opcode::READDIRPLUS => {}
        _ => return Ok(()),
    }
    match chain.writable.len() < size_of::<OutHeader>() {
        true => Err(Errno::INVAL),
        false => Ok(()),
    }
}

/// Takes a structure off a message's front; EINVAL if the message is too short for it.
pub fn take<T: ByteValued + Default>(body: &mut Buffers<'_>) -> Result<T, Errno> {
    body.read_obj("FUSE message").map_err(|_| Errno::INVAL)
}

/// An error of the host as the number that the guest gets.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Writes a reply to a request's buffers and returns its length. One that does not fit becomes EIO;
/// buffers that cannot hold a header stay empty.
pub fn write_reply(room: &mut Buffers<'_>, unique: u64, reply: &Reply) -> u32 {
    let header_bytes = size_of::<OutHeader>();
    let (error, body) = match reply {
        Ok(body) if header_bytes + body.len() <= room.len() => (0, body.as_slice()),
        Ok(_) => (-Errno::IO.raw_os_error(), [].as_slice()),
        Err(error) => (-error.raw_os_error(), [].as_slice()),
    };
    // Replies are built here and are far shorter than 4 GiB.
    let len = (header_bytes + body.len()) as u32;
    let header = OutHeader { len, error, unique };
    if room.len() < header_bytes {
        return 0;
    }
    (room.write(header.as_slice()) + room.write(body)) as u32
}
