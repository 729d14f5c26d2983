//! The random number generator of the guest, which the host seeds.
//!
//! Guests that were restored from one template have one state of the kernel's generator, and who
//! owns one of them knows it. The host's bytes tell them apart at once, and not when the kernel
//! next draws a key: the agent credits them before it does anything else for the host.
//!
//! What the agent itself drew before stays alike in all of them: its stack canary, its addresses,
//! the keys of its hash maps, and the order in which tokio polls. None of it reaches a container.
//! The processes of containers execute a program after that, twice: the agent's binary (see
//! [`crate::init`]), then their own, and execve(2) draws canary, addresses and AT_RANDOM anew.

use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags, open};

use crate::sys::random::{self, MAX_SEED};
use crate::sys::{Doing as _, OsError};

const DEVICE: &str = "/dev/urandom";

/// The generator could not be seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("a seed of {0} bytes is too long: at most {MAX_SEED} are taken")]
    TooLong(usize),
    #[error("seed the guest's random number generator")]
    Os(#[from] OsError),
}

/// Credits random bytes of the host, if there are any, so that every number from now on depends on
/// them.
pub fn credit(seed: &[u8]) -> Result<(), SeedError> {
    if seed.is_empty() {
        return Ok(());
    }
    if seed.len() > MAX_SEED {
        return Err(SeedError::TooLong(seed.len()));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let device = open(DEVICE, flags, Mode::empty()).doing(|| format!("open {DEVICE}"))?;
    random::credit(device.as_fd(), seed).doing(|| format!("credit {} bytes", seed.len()))?;
    Ok(random::reseed(device.as_fd()).doing(|| "reseed")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_too_long_is_refused_and_none_is_nothing_to_do() {
        let error = credit(&[0; 257]).unwrap_err().to_string();
        assert_eq!(
            error,
            "a seed of 257 bytes is too long: at most 256 are taken"
        );
        credit(&[]).unwrap();
    }
}
