//! The jail: what is left of the host for a process that a guest may take over.
//!
//! A process enters it on its own, with every descriptor open that it will ever need, in this order:
//! a mount namespace whose root holds nothing but what the process serves; a user namespace that
//! owns the ipc, uts and network namespaces made with it, but not the mount namespace, so that
//! nothing can be mounted or unmounted, and below which there can be no other; an empty session
//! keyring; no capability but those the file server needs, and these only within the user namespace;
//! no new privileges. The pid namespace cannot be entered from
//! within, so whoever starts the process makes it. The system call filters come last, one a thread;
//! see [`filter`].

pub mod caps;
pub mod filter;
pub mod keyring;
pub mod limits;
pub mod qemu_filter;
pub mod root;
pub mod user;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

pub use caps::Caps;
use limits::UserNamespaces;
pub use root::Root;

/// Entering the jail failed; the process must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The starter forgot the pid namespace.
    #[error("not the first process of a pid namespace; rvm-vmm is started by rvm, not by hand")]
    NotFirst,
    /// A step that concerns no path.
    #[error("{action}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Building or entering the new root.
    #[error("{action} {}", path.display())]
    Root {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Nobody is left to serve.
    #[error("the process that has started this one is gone")]
    Orphaned,
    /// The kernel does not take the filter.
    #[error("cannot filter system calls")]
    Filter(#[source] seccompiler::Error),
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Step {
        action,
        source: source.into(),
    }
}

/// Enters the jail, and ends with `parent` from now on. The caller has one thread.
pub fn enter(root: &Root, caps: Caps, parent: u32) -> Result<(), JailError> {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        return Err(JailError::NotFirst);
    }
    let own_status = File::open("/proc/self/status").map_err(step("open /proc/self/status"))?;
    limits::set_resource_limits()?;
    let user_namespaces = UserNamespaces::find()?;
    let mapper = user::Mapper::spawn()?;
    root.enter()?;
    unshare(
        UnshareFlags::NEWUSER
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWCGROUP,
    )
    .map_err(step(
        "unshare the user, ipc, uts, network and cgroup namespaces",
    ))?;
    mapper.map()?;
    user_namespaces.forbid()?;
    keyring::leave_session()?;
    caps.keep()?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    // Changing identity clears it, so this comes late.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("set the parent death signal"))?;
    // It is not sent for a death that came before. The kernel finds a new parent for a process first
    // and looks at its wish for a signal then, so one that still has its parent will be told.
    match parent_of(own_status).map_err(step("find out the parent"))? {
        Some(found) if found == parent => Ok(()),
        _ => Err(JailError::Orphaned),
    }
}

/// The parent's pid, from a process's status in the host's /proc. getppid(2) answers in terms of a
/// pid namespace that the parent is not in.
fn parent_of(mut status: File) -> io::Result<Option<u32>> {
    let mut text = String::new();
    status.read_to_string(&mut text)?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.and_then(|pid| pid.trim().parse().ok()))
}

/// The directory of the process's own descriptors, for a file server that opens files anew by them.
/// Called before the jail is entered, where there is no /proc.
///
/// It is the root of a mount that is attached nowhere. From /proc/self/fd itself the way up would lead
/// to the host's /proc/sys, where root's id alone suffices to write.
pub fn own_descriptors() -> Result<File, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let fd = open_tree(CWD, "/proc/self/fd", flags).map_err(step("open /proc/self/fd"))?;
    Ok(fd.into())
}

#[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
fn unshare(flags: UnshareFlags) -> Result<(), io::Error> {
    // SAFETY: there is one thread, and descriptors are not unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, openat};
    use std::os::fd::AsRawFd;

    #[test]
    fn own_descriptors_can_be_opened_anew_and_lead_nowhere_else() {
        let directory = own_descriptors().unwrap();
        let open = |path: &str| openat(&directory, path, OFlags::RDONLY, Mode::empty());
        let file = tempfile::tempfile().unwrap();
        open(&file.as_raw_fd().to_string()).unwrap();
        assert!(open("../../sys/kernel/core_pattern").is_err());
        assert!(open("../status").is_err());
    }
}
