//! The user namespace: whether one can be made, and its identity map.
//!
//! Every id is mapped to itself, so that files keep their owners while capabilities hold only
//! within the namespace. Only a process outside the namespace may write such a map, so a helper is
//! forked before the process enters the namespace.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use super::{JailError, step};

/// The helper process, which waits to write the maps.
pub struct Mapper {
    pid: Pid,
    signal: UnixStream,
}

impl Mapper {
    /// Forks the helper. The caller has one thread.
    #[expect(unsafe_code, reason = "fork")]
    pub fn spawn() -> Result<Self, JailError> {
        // The descriptor refers to this process even when the child opens files below it.
        let this = rustix::fs::open(
            "/proc/self",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(step("open /proc/self"))?;
        let (signal, wait) = UnixStream::pair().map_err(step("make a socket pair"))?;
        // SAFETY: there is one thread, so the child may go on as any process.
        match unsafe { libc::fork() } {
            -1 => Err(step("fork")(io::Error::last_os_error())),
            0 => {
                drop(signal);
                let code = write_maps(wait, &this).map_or_else(exit_code, |()| 0);
                // SAFETY: the child owns nothing that must be dropped.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or(JailError::NotInit)?;
                Ok(Self { pid, signal })
            }
        }
    }

    /// Makes the helper write the maps of the caller's new namespace, and waits for it.
    pub fn map(mut self) -> Result<(), JailError> {
        const ACTION: &str = "map the ids of the user namespace";
        self.signal.write_all(&[1]).map_err(step(ACTION))?;
        wait_for(self.pid).map_err(step(ACTION))
    }
}

/// Waits for a helper process, whose exit status is an errno or 0.
fn wait_for(pid: Pid) -> io::Result<()> {
    let status = waitpid(Some(pid), WaitOptions::empty())?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the helper process was killed")),
    }
}

/// Makes a user namespace in a child process, and ends it with the child.
#[expect(unsafe_code, reason = "fork")]
pub fn try_namespace() -> Result<(), JailError> {
    // SAFETY: the child makes two system calls and allocates nothing.
    match unsafe { libc::fork() } {
        -1 => Err(step("fork")(io::Error::last_os_error())),
        0 => {
            let made = super::unshare(UnshareFlags::NEWUSER);
            let code = made.map_or_else(exit_code, |()| 0);
            // SAFETY: the child owns nothing that must be dropped.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid).ok_or(JailError::NotInit)?;
            wait_for(pid).map_err(JailError::UserNamespace)
        }
    }
}

/// The reason why a step of entering the jail failed: in a chroot several do, because there can be
/// no user namespace.
pub fn explain(error: JailError) -> JailError {
    try_namespace().err().unwrap_or(error)
}

fn exit_code(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn write_maps(mut wait: UnixStream, process: &OwnedFd) -> io::Result<()> {
    wait.read_exact(&mut [0])?;
    for map in ["uid_map", "gid_map"] {
        let ours = fs::read_to_string(format!("/proc/self/{map}"))?;
        let file = rustix::fs::openat(
            process,
            map,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The kernel takes a map in one write.
        rustix::io::write(&file, identity(&ours).as_bytes())?;
    }
    Ok(())
}

/// The identity map of the ids of a namespace whose own map is `ours`.
fn identity(ours: &str) -> String {
    ours.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, _, count) = (fields.next()?, fields.next()?, fields.next()?);
            Some(format!("{start} {start} {count}\n"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_map_maps_every_id_to_itself() {
        assert_eq!(
            identity("         0          0 4294967295\n"),
            "0 0 4294967295\n"
        );
    }

    #[test]
    fn a_host_that_is_a_container_maps_the_ids_that_it_has() {
        let map = "0 100000 1000\n1000 1000 1\n";
        assert_eq!(identity(map), "0 0 1000\n1000 1000 1\n");
    }
}
