//! The kernel's random number generator, see random(4).
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::{self, Errno};

use super::check;

/// The longest seed, in bytes.
pub const MAX_SEED: usize = 256;

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of `<linux/random.h>`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

/// `struct rand_pool_info`
#[repr(C)]
struct PoolInfo {
    /// In bits.
    entropy_count: c_int,
    /// In bytes.
    buf_size: c_int,
    buf: [u8; MAX_SEED],
}

impl PoolInfo {
    /// None if the seed is longer than [`MAX_SEED`].
    fn new(seed: &[u8]) -> Option<Self> {
        let mut buf = [0; MAX_SEED];
        buf.get_mut(..seed.len())?.copy_from_slice(seed);
        let buf_size = c_int::try_from(seed.len()).ok()?;
        Some(Self {
            entropy_count: buf_size * 8,
            buf_size,
            buf,
        })
    }
}

/// Adds random bytes to the pool and credits each of their bits. Needs CAP_SYS_ADMIN.
pub fn credit(device: BorrowedFd<'_>, seed: &[u8]) -> io::Result<()> {
    let info = PoolInfo::new(seed).ok_or(Errno::INVAL)?;
    // SAFETY: the structure lives across the call, which only reads it, and `buf_size` bytes of
    // `buf` at most.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const info) };
    check(libc::c_long::from(done)).map(drop)
}

/// Makes a new key from the pool, for every CPU and for the vDSO of every process. Until then
/// numbers follow from the old key alone. Needs CAP_SYS_ADMIN.
pub fn reseed(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), RESEED) };
    check(libc::c_long::from(done)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(std::mem::offset_of!(PoolInfo, buf_size), 4);
        assert_eq!(std::mem::offset_of!(PoolInfo, buf), 8);
        let info = PoolInfo::new(&[7; 32]).unwrap();
        assert_eq!((info.entropy_count, info.buf_size), (256, 32));
        assert_eq!((info.buf[31], info.buf[32]), (7, 0));
    }

    #[test]
    fn a_seed_is_bounded() {
        assert!(PoolInfo::new(&[0; MAX_SEED]).is_some());
        assert!(PoolInfo::new(&[0; MAX_SEED + 1]).is_none());
    }
}
