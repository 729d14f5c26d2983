//! The user namespace: whether one can be made, the ids that are mapped into it, and the id that
//! the jailed process has on the host.
//!
//! Ids are mapped to themselves: for a file server all of them, so that files keep their owners
//! while capabilities hold only within the namespace; for QEMU, which serves no files, its own
//! alone. Only a process outside the namespace may write such a map, so a helper is forked before
//! the process enters the namespace.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{JailError, step};

/// The first of the ids that jailed processes have, of which the kernel's largest pid, 2^22, bounds
/// the number. No distribution, container engine or systemd gives out ids in this range; see
/// systemd's "Users, Groups, UIDs and GIDs".
const FIRST_OWN_ID: u32 = 0x7000_0000;

/// The user and group that a jailed process has on the host: of no other process but those that
/// `parent` has started. Root's would be that of the host's files and settings, some of which the
/// kernel lets it write by the number alone. None where rvm itself is in a user namespace without
/// such ids.
pub fn own_id(parent: u32) -> Result<Option<u32>, JailError> {
    let id = FIRST_OWN_ID + parent % (1 << 22);
    for map in ["uid_map", "gid_map"] {
        let text = fs::read_to_string(format!("/proc/self/{map}"));
        if !is_mapped(&text.map_err(step("read the own id map"))?, id) {
            return Ok(None);
        }
    }
    Ok(Some(id))
}

/// Takes on this user and group and no other groups, in all respects. The capabilities stay. The
/// caller has one thread.
pub fn become_own(id: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Makes the calling thread root to the files that it serves. Its real and saved ids stay.
pub fn serve_as_root() -> rustix::io::Result<()> {
    set_thread_res_gid(None, Gid::ROOT, None)?;
    set_thread_res_uid(None, Uid::ROOT, None)
}

/// The ids of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// All that there are outside.
    All,
    /// One.
    Only(u32),
}

/// The helper process, which waits to write the maps.
pub struct Mapper {
    pid: Pid,
    signal: UnixStream,
}

impl Mapper {
    /// Forks the helper. The caller has one thread.
    #[expect(unsafe_code, reason = "fork")]
    pub fn spawn(ids: Ids) -> Result<Self, JailError> {
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
                let code = write_maps(wait, &this, ids).map_or_else(exit_code, |()| 0);
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

fn write_maps(mut wait: UnixStream, process: &OwnedFd, ids: Ids) -> io::Result<()> {
    wait.read_exact(&mut [0])?;
    for map in ["uid_map", "gid_map"] {
        let text = match ids {
            Ids::All => identity(&fs::read_to_string(format!("/proc/self/{map}"))?),
            Ids::Only(id) => format!("{id} {id} 1\n"),
        };
        let file = rustix::fs::openat(
            process,
            map,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The kernel takes a map in one write.
        rustix::io::write(&file, text.as_bytes())?;
    }
    Ok(())
}

/// The identity map of the ids of a namespace whose own map is `ours`.
fn identity(ours: &str) -> String {
    ranges(ours)
        .map(|(start, count)| format!("{start} {start} {count}\n"))
        .collect()
}

fn is_mapped(ours: &str, id: u32) -> bool {
    ranges(ours).any(|(start, count)| id.checked_sub(start).is_some_and(|place| place < count))
}

/// The ranges of ids in a namespace's own map: the first, and how many.
fn ranges(map: &str) -> impl Iterator<Item = (u32, u32)> + '_ {
    map.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().map(str::parse);
        let (start, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some((start.ok()?, count.ok()?))
    })
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
        for (id, mapped) in [(0, true), (999, true), (1000, true), (1001, false)] {
            assert_eq!(is_mapped(map, id), mapped, "{id}");
        }
        assert!(!is_mapped(map, FIRST_OWN_ID));
        assert!(is_mapped("0 0 4294967295\n", FIRST_OWN_ID + (1 << 22)));
    }
}
