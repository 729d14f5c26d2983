//! User namespaces that only serve to map the ids of a mount.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Pid;

use super::spec::IdMap;
use crate::sys::clone::{CloneRequest, Cloned, clone_process};
use crate::sys::{Doing as _, OsError, signal};
use rvm_sys::mount::map_ids;

/// Makes the descriptor that the container's process gets for each map: the mapped mount for a
/// bind, or else the namespace itself.
pub fn prepare(maps: &[IdMap]) -> Result<Vec<OwnedFd>, OsError> {
    maps.iter().map(prepare_one).collect()
}

fn prepare_one(map: &IdMap) -> Result<OwnedFd, OsError> {
    let namespace = user_namespace(map)?;
    let Some(bind) = &map.bind else {
        return Ok(namespace);
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let path = bind.path.as_str();
    let mount = open_tree(CWD, path, flags).doing(|| format!("stat {path}"))?;
    map_ids(mount.as_fd(), namespace.as_fd(), bind.map_recursive)
        .doing(|| format!("map the ids of {path}, which its file system may not support"))?;
    Ok(mount)
}

/// A user namespace with this map. A process keeps it alive until it is open.
fn user_namespace(map: &IdMap) -> Result<OwnedFd, OsError> {
    let request = CloneRequest {
        flags: libc::CLONE_NEWUSER as u64,
        cgroup: None,
    };
    // SAFETY: the child waits in system calls and never returns.
    #[allow(unsafe_code)]
    let cloned = unsafe { clone_process(&request) }.doing(|| "make a user namespace")?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => signal::pause_until_killed(),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    let namespace = write_maps(pid, &map.uid_map, &map.gid_map).and_then(|()| {
        let path = format!("/proc/{}/ns/user", pid.as_raw_nonzero());
        std::fs::File::open(&path)
            .map(OwnedFd::from)
            .doing(|| format!("open {path}"))
    });
    // The reaper reaps it like every orphan.
    signal::send(pidfd.as_fd(), libc::SIGKILL as u32).doing(|| "end the namespace's process")?;
    namespace
}

/// Writes the id maps of a process's new user namespace.
pub fn write_maps(pid: Pid, uid_map: &str, gid_map: &str) -> Result<(), OsError> {
    for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        // In one write, as the kernel demands.
        std::fs::write(&path, map)
            .doing(|| format!("write {:?} to {path}", map.trim_end().replace('\n', ", ")))?;
    }
    Ok(())
}
