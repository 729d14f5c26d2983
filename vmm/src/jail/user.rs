//! The user namespace: whether one can be made, the ids that are mapped into it, and the id that
//! the jailed process has on the host.
//!
//! Ids are mapped to themselves: for a file server all of them, so that files keep their owners
//! while capabilities hold only within the namespace; for QEMU, which serves no files, its own
//! alone. Only a process outside the namespace may write such a map, so the process makes the
//! namespace by a child, and enters it when the map is written.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Gid, Pid, Uid, WaitOptions, waitpid};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use rvm_sys::clone::run_in_child;

use super::{JailError, step};

/// The first of the ids that jailed processes have, of which the kernel's largest pid, 2^22, bounds
/// the number. No distribution, container engine or systemd gives out ids in this range; see
/// systemd's "Users, Groups, UIDs and GIDs".
const FIRST_OWN_ID: u32 = 0x7000_0000;

/// The ids of rvm's own user namespace.
pub struct OwnMaps {
    /// /proc/self/uid_map
    users: String,
    /// /proc/self/gid_map
    groups: String,
}

impl OwnMaps {
    pub fn read() -> Result<Self, JailError> {
        let read = |path| fs::read_to_string(path).map_err(step("read the own id maps"));
        Ok(Self {
            users: read("/proc/self/uid_map")?,
            groups: read("/proc/self/gid_map")?,
        })
    }

    /// The user and group that a jailed process has on the host: of no other process but those that
    /// `parent` has started. Root's would be that of the host's files and settings, some of which
    /// the kernel lets it write by the number alone. None where rvm itself is in a user namespace
    /// without such ids.
    pub fn own_id(&self, parent: u32) -> Option<u32> {
        let id = FIRST_OWN_ID + parent % (1 << 22);
        (is_mapped(&self.users, id) && is_mapped(&self.groups, id)).then_some(id)
    }
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

/// A user namespace that no process is in.
pub struct UserNamespace(OwnedFd);

impl UserNamespace {
    /// Makes one with these ids of the caller's. The caller has one thread.
    pub fn make(ids: Ids, maps: &OwnMaps) -> Result<Self, JailError> {
        let (pid, process) = ended_child()?;
        let made = process
            .map_err(io::Error::from)
            .and_then(|process| Self::of(&process, ids, maps));
        reap(pid)?;
        made.map_err(step("map the ids of the user namespace"))
    }

    /// The namespace of a process that has ended, once its ids are mapped.
    fn of(process: &OwnedFd, ids: Ids, maps: &OwnMaps) -> io::Result<Self> {
        for (name, outside) in [("uid_map", &maps.users), ("gid_map", &maps.groups)] {
            let text = match ids {
                Ids::All => identity(outside),
                Ids::Only(id) => format!("{id} {id} 1\n"),
            };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(process, name, flags, Mode::empty())?;
            // The kernel takes a map in one write.
            rustix::io::write(&file, text.as_bytes())?;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(openat(process, "ns/user", flags, Mode::empty())?))
    }

    /// Enters it, with every capability there. The caller has one thread.
    pub fn enter(self) -> Result<(), JailError> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(step("enter the user namespace"))
    }
}

/// Makes a user namespace, and ends it.
pub fn try_namespace() -> Result<(), JailError> {
    let (pid, _) = ended_child()?;
    reap(pid)
}

/// A child in a user namespace of its own, which has ended and keeps the namespace until it is
/// waited for, and its directory in /proc.
#[expect(unsafe_code, reason = "a child that shares the memory")]
fn ended_child() -> Result<(Pid, rustix::io::Result<OwnedFd>), JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(c"/proc/self", flags, Mode::empty());
    // SAFETY: the child makes one system call.
    let made = unsafe { run_in_child(libc::CLONE_NEWUSER, open) };
    made.map_err(|errno| JailError::UserNamespace(errno.into()))
}

fn reap(pid: Pid) -> Result<(), JailError> {
    let waited = waitpid(Some(pid), WaitOptions::empty());
    waited.map(drop).map_err(step("wait for a child"))
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
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn a_namespace_has_the_ids_that_are_asked_for() {
        let maps = OwnMaps::read().unwrap();
        let inside = |ids| {
            let namespace = UserNamespace::make(ids, &maps).unwrap();
            let fd = format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                namespace.0.as_raw_fd()
            );
            let mut inside = Command::new("nsenter");
            inside.args(["--preserve-credentials", &format!("--user={fd}")]);
            let output = inside
                .args(["cat", "/proc/self/uid_map", "/proc/self/gid_map"])
                .output();
            let maps = String::from_utf8(output.unwrap().stdout).unwrap();
            ranges(&maps).collect::<Vec<_>>()
        };
        let own: Vec<_> = ranges(&maps.users).chain(ranges(&maps.groups)).collect();
        assert_eq!(inside(Ids::All), own);
        assert_eq!(inside(Ids::Only(7)), [(7, 1), (7, 1)]);
    }

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
