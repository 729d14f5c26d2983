//! FUSE_STATX: attributes with the time of a file's birth, which FUSE_GETATTR has not.

use std::io;

use rustix::fs::{AtFlags, Statx, StatxFlags};
use rvm_protocol::SHARED_CACHE_TIMEOUT;
use virtiofsd::filesystem::FileSystem;
use virtiofsd::fuse::{Attr, GETATTR_FH};
use virtiofsd::soft_idmap::Id;
use vm_memory::ByteValued;

use super::deferred::Reply;
use super::files::Files;
use super::lend::{server_itself, with_handle, with_path};
use super::message::errno;
use super::nodes::Node;

/// struct fuse_statx_in of linux/fuse.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StatxIn {
    pub getattr_flags: u32,
    reserved: u32,
    pub fh: u64,
    flags: u32,
    mask: u32,
}

/// struct fuse_statx_out of linux/fuse.h, whose `stat` has the layout of statx(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StatxOut {
    valid: u64,
    valid_nsec: u32,
    flags: u32,
    spare: [u64; 2],
    pub mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    pub mode: u16,
    spare_mode: u16,
    pub ino: u64,
    pub size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: Time,
    pub btime: Time,
    ctime: Time,
    mtime: Time,
    rdev_major: u32,
    rdev_minor: u32,
    dev_major: u32,
    dev_minor: u32,
    spare_end: [u64; 14],
}

/// struct fuse_sx_time of linux/fuse.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    seconds: i64,
    nanoseconds: u32,
    reserved: i32,
}

#[expect(unsafe_code, reason = "messages are plain bytes")]
mod plain {
    // SAFETY: integers without padding between them: every field lies at a multiple of its size,
    // and the sizes add up.
    unsafe impl vm_memory::ByteValued for super::StatxIn {}
    const _: () = assert!(size_of::<super::StatxIn>() == 24);
    // SAFETY: as above.
    unsafe impl vm_memory::ByteValued for super::StatxOut {}
    const _: () = assert!(size_of::<super::StatxOut>() == 288);
}

/// The attributes of an inode, by the handle that the guest has open if it names one.
pub fn get(fs: &Files, inode: u64, request: &StatxIn) -> Reply {
    let ask = |file: &std::fs::File| {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        Ok(rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted)?)
    };
    let found = if request.getattr_flags & GETATTR_FH != 0 {
        with_handle(fs, inode, request.fh, ask)
    } else {
        with_path(fs, inode, ask)
    };
    let mut attributes = match found {
        Ok(attributes) => of_statx(&attributes),
        // virtiofsd opens no symbolic link, device, FIFO or socket.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            basic(fs, inode).map_err(|error| errno(&error))?
        }
        Err(error) => return Err(errno(&error)),
    };
    let node = Node::of(fs, inode, attributes.mode.into(), attributes.size);
    if let Some(node) = node {
        // The upper half of a mode is empty.
        attributes.mode = node.mode(attributes.mode.into()) as u16;
        let device = libc::dev_t::from(node.device());
        attributes.rdev_major = libc::major(device);
        attributes.rdev_minor = libc::minor(device);
    }
    Ok(attributes.as_slice().to_vec())
}

fn timeouts() -> StatxOut {
    StatxOut {
        valid: SHARED_CACHE_TIMEOUT.as_secs(),
        valid_nsec: SHARED_CACHE_TIMEOUT.subsec_nanos(),
        ..StatxOut::default()
    }
}

fn of_statx(from: &Statx) -> StatxOut {
    let time = |time: rustix::fs::StatxTimestamp| Time {
        seconds: time.tv_sec,
        nanoseconds: time.tv_nsec,
        reserved: 0,
    };
    let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    StatxOut {
        mask: from.stx_mask & known.bits(),
        blksize: from.stx_blksize,
        nlink: from.stx_nlink,
        uid: from.stx_uid,
        gid: from.stx_gid,
        mode: from.stx_mode,
        ino: from.stx_ino,
        size: from.stx_size,
        blocks: from.stx_blocks,
        atime: time(from.stx_atime),
        btime: time(from.stx_btime),
        ctime: time(from.stx_ctime),
        mtime: time(from.stx_mtime),
        rdev_major: from.stx_rdev_major,
        rdev_minor: from.stx_rdev_minor,
        dev_major: from.stx_dev_major,
        dev_minor: from.stx_dev_minor,
        ..timeouts()
    }
}

/// Attributes without the time of birth.
fn basic(fs: &Files, inode: u64) -> io::Result<StatxOut> {
    let (from, _): (Attr, _) = fs.getattr(server_itself(), inode, None)?;
    let time = |seconds: u64, nanoseconds| Time {
        seconds: seconds.cast_signed(),
        nanoseconds,
        reserved: 0,
    };
    let device = libc::dev_t::from(from.rdev);
    Ok(StatxOut {
        mask: StatxFlags::BASIC_STATS.bits(),
        blksize: from.blksize,
        nlink: from.nlink,
        uid: from.uid.into_inner(),
        gid: from.gid.into_inner(),
        // The upper half of a mode is empty.
        mode: from.mode as u16,
        ino: from.ino,
        size: from.size,
        blocks: from.blocks,
        atime: time(from.atime, from.atimensec),
        ctime: time(from.ctime, from.ctimensec),
        mtime: time(from.mtime, from.mtimensec),
        rdev_major: libc::major(device),
        rdev_minor: libc::minor(device),
        ..timeouts()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::UNIX_EPOCH;

    use super::super::client::Client;
    use super::super::message::opcode;
    use super::*;

    fn statx(guest: &mut Client, inode: u64, request: StatxIn) -> Result<StatxOut, i32> {
        let answer = guest.call(opcode::STATX, inode, request.as_slice())?;
        Ok(*StatxOut::from_slice(&answer).unwrap())
    }

    #[test]
    fn files_and_directories_have_the_times_of_their_birth() {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let host = std::fs::metadata(guest.path("file")).unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let found = statx(&mut guest, inode, StatxIn::default()).unwrap();
        let birth = host.created().unwrap().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(found.btime.seconds, birth.as_secs() as i64);
        assert_eq!(found.btime.nanoseconds, birth.subsec_nanos());
        assert_eq!((found.ino, found.size), (host.ino(), 4));
        assert_eq!(u32::from(found.mode), host.mode());
        let root = statx(&mut guest, 1, StatxIn::default()).unwrap();
        assert!(root.btime > Time::default() && root.btime <= found.btime);
    }

    #[test]
    fn an_open_file_is_meant_and_not_its_name() {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let request = StatxIn {
            getattr_flags: GETATTR_FH,
            fh: guest.open(inode, libc::O_RDONLY),
            ..StatxIn::default()
        };
        std::fs::remove_file(guest.path("file")).unwrap();
        assert_eq!(statx(&mut guest, inode, request).unwrap().nlink, 0);
    }

    #[test]
    fn what_virtiofsd_does_not_open_has_no_time_of_birth() {
        let mut guest = Client::new();
        std::os::unix::fs::symlink("target", guest.path("link")).unwrap();
        let inode = guest.lookup("link").unwrap().nodeid;
        let found = statx(&mut guest, inode, StatxIn::default()).unwrap();
        assert_eq!(found.mask, StatxFlags::BASIC_STATS.bits());
        assert_eq!(u32::from(found.mode), libc::S_IFLNK | 0o777);
        assert_eq!(found.size, 6);
    }

    #[test]
    fn an_inode_that_the_guest_does_not_know_has_no_attributes() {
        let mut guest = Client::new();
        let unknown = statx(&mut guest, 77, StatxIn::default());
        assert_eq!(unknown.unwrap_err(), libc::EBADF);
    }
}
