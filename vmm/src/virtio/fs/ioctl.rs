//! FUSE_IOCTL: the flags of files and directories, as chattr(1) and lsattr(1) show them.
//!
//! The guest's kernel checks who may change them. The host's refuses what concerns all of it: the
//! flags `i` and `a`, and project ids, which take capabilities outside the jail.

use rustix::io::Errno;
use virtiofsd::fuse::{IoctlIn, IoctlOut};
use vm_memory::ByteValued;

use super::deferred::Reply;
use super::files::Files;
use super::lend::with_handle;
use super::message::{errno, take};
use crate::virtio::chain::Buffers;

/// _IOR('f', 1, long), whose argument is an int all the same; see ioctl_iflags(2).
pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// _IOW('f', 2, long)
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// _IOR('X', 31, struct fsxattr)
pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// _IOW('X', 32, struct fsxattr)
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// The length of struct fsxattr, the longest argument.
const ARGUMENT_BYTES: usize = 28;

/// An argument in memory of its own, with room for the long that the calls' numbers speak of.
#[repr(C, align(8))]
struct Argument([u8; 32]);

/// Executes the call that a request names on the file that the guest has open; `body` is what
/// follows the request's header. Others get ENOTTY.
pub fn execute(fs: &Files, inode: u64, mut body: Buffers<'_>) -> Reply {
    let request: IoctlIn = take(&mut body)?;
    let (bytes, writes) = match request.cmd {
        FS_IOC_GETFLAGS => (4, false),
        FS_IOC_SETFLAGS => (4, true),
        FS_IOC_FSGETXATTR => (ARGUMENT_BYTES, false),
        FS_IOC_FSSETXATTR => (ARGUMENT_BYTES, true),
        _ => return Err(Errno::NOTTY),
    };
    let mut argument = Argument([0; 32]);
    if writes && body.read(&mut argument.0[..bytes]) != bytes {
        return Err(Errno::INVAL);
    }
    with_handle(fs, inode, request.fh, |file| {
        Ok(call(file, request.cmd, &mut argument)?)
    })
    .map_err(|error| errno(&error))?;
    let mut reply = IoctlOut::default().as_slice().to_vec();
    if !writes {
        reply.extend_from_slice(&argument.0[..bytes]);
    }
    Ok(reply)
}

#[expect(unsafe_code, reason = "ioctls that rustix has only in part")]
fn call(file: &std::fs::File, number: u32, argument: &mut Argument) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: each of the four calls reads or writes at most the 28 bytes of its structure.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::Ioctl::from(number),
            argument.0.as_mut_ptr(),
        )
    };
    rvm_sys::check(result.into()).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::client::{Answer, Client};
    use super::super::message::opcode;
    use super::*;

    const NODUMP: u32 = 0x40;

    struct Opened {
        guest: Client,
        inode: u64,
        handle: u64,
    }

    impl Opened {
        fn new() -> Self {
            let mut guest = Client::new();
            std::fs::write(guest.path("file"), "text").unwrap();
            let inode = guest.lookup("file").unwrap().nodeid;
            let handle = guest.open(inode, libc::O_RDONLY);
            Self {
                guest,
                inode,
                handle,
            }
        }

        fn call(&mut self, cmd: u32, argument: &[u8]) -> Answer {
            let request = IoctlIn {
                fh: self.handle,
                cmd,
                ..IoctlIn::default()
            };
            let body = [request.as_slice(), argument].concat();
            let answer = self.guest.call(opcode::IOCTL, self.inode, &body)?;
            Ok(answer[size_of::<IoctlOut>()..].to_vec())
        }

        /// The flags as the host sees them, if its file system has any.
        fn of_host(&self) -> Option<u32> {
            let mut argument = Argument([0; 32]);
            let file = File::open(self.guest.path("file")).unwrap();
            call(&file, FS_IOC_GETFLAGS, &mut argument).ok()?;
            Some(u32::from_ne_bytes(argument.0[..4].try_into().unwrap()))
        }
    }

    #[test]
    fn flags_are_those_of_the_hosts_file() {
        let mut file = Opened::new();
        let Some(before) = file.of_host() else {
            assert_eq!(file.call(FS_IOC_GETFLAGS, &[]), Err(libc::ENOTTY));
            return;
        };
        let flags = file.call(FS_IOC_GETFLAGS, &[]);
        assert_eq!(flags, Ok(before.to_ne_bytes().to_vec()));
        let set = file.call(FS_IOC_SETFLAGS, &(before ^ NODUMP).to_ne_bytes());
        assert_eq!(set, Ok(Vec::new()));
        assert_eq!(file.of_host(), Some(before ^ NODUMP));
        let extended = file.call(FS_IOC_FSGETXATTR, &[]).unwrap();
        assert_eq!(extended.len(), ARGUMENT_BYTES);
        assert_eq!(file.call(FS_IOC_FSSETXATTR, &extended), Ok(Vec::new()));
    }

    #[test]
    fn other_calls_and_short_arguments_are_refused() {
        let mut file = Opened::new();
        for cmd in [0, 0x5421, u32::MAX] {
            assert_eq!(file.call(cmd, &[0; 32]), Err(libc::ENOTTY));
        }
        assert_eq!(file.call(FS_IOC_SETFLAGS, &[0; 3]), Err(libc::EINVAL));
        assert_eq!(file.call(FS_IOC_FSSETXATTR, &[0; 27]), Err(libc::EINVAL));
        file.handle += 1;
        assert_eq!(file.call(FS_IOC_GETFLAGS, &[]), Err(libc::EBADF));
    }
}
