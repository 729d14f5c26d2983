//! Loop devices, see loop(4).
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{self, Errno};

use super::check;

/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` of `<linux/loop.h>`.
const GET_FREE: libc::Ioctl = 0x4c82;
const CONFIGURE: libc::Ioctl = 0x4c0a;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_AUTOCLEAR: u32 = 4;

/// How often another process may take the device that was free.
const TRIES: u32 = 32;

/// `struct loop_info64`
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device. The kernel detaches it when this is dropped and no file system is mounted from
/// it.
#[derive(Debug)]
pub struct LoopDevice {
    node: String,
    _device: OwnedFd,
}

impl LoopDevice {
    /// Attaches a file.
    pub fn attach(path: &Path, read_only: bool) -> io::Result<Self> {
        let access = match read_only {
            true => OFlags::RDONLY,
            false => OFlags::RDWR,
        };
        let flags = access | OFlags::CLOEXEC;
        let file = open(path, flags, Mode::empty())?;
        let control = open(
            "/dev/loop-control",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for _ in 0..TRIES {
            // SAFETY: the call takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
            let number = check(libc::c_long::from(number))?;
            let node = format!("/dev/loop{number}");
            let device = open(&node, flags, Mode::empty())?;
            match configure(&device, &file, read_only) {
                Err(Errno::BUSY) => {}
                other => {
                    return other.map(|()| Self {
                        node,
                        _device: device,
                    });
                }
            }
        }
        Err(Errno::BUSY)
    }

    /// The path of the device.
    pub fn node(&self) -> &str {
        &self.node
    }
}

fn configure(device: &OwnedFd, file: &OwnedFd, read_only: bool) -> io::Result<()> {
    // SAFETY: the structure is of integers.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().unsigned_abs();
    config.info.flags = FLAG_AUTOCLEAR | if read_only { FLAG_READ_ONLY } else { 0 };
    // SAFETY: the structure lives across the call, which only reads it.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
    check(libc::c_long::from(done)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
        assert_eq!(std::mem::offset_of!(Info, flags), 52);
    }
}
