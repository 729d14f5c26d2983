//! The jail: what remains of the host for a process that a guest may take over.
//!
//! A process enters the jail by itself, after it has opened every descriptor that it will need. The
//! jail consists of, in this order:
//! - a mount namespace whose root holds only what the process serves;
//! - a user namespace, which owns the ipc, uts and network namespaces created with it but not the
//!   mount namespace, so that the process can neither mount nor unmount, and which cannot have
//!   children;
//! - an empty session keyring;
//! - a user and a group of its own;
//! - no capabilities but those of the file server, which hold only within the user namespace;
//! - no new privileges;
//! - less rights by [`landlock`], where the kernel has it;
//! - a system call filter per thread, see [`filter`].
//!
//! The process cannot enter a pid namespace by itself, so rvm starts it in one.

mod caps;
pub mod filter;
mod keyring;
pub mod landlock;
mod limits;
pub mod qemu_filter;
mod root;
mod user;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;

pub use caps::Caps;
use limits::UserNamespaces;
pub use root::Root;
pub use user::try_namespace;
use user::{Ids, OwnMaps, UserNamespace};

/// The jail could not be entered; the process must not continue.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("not the init process of a pid namespace; rvm-vmm is started by rvm, not by hand")]
    NotInit,
    /// A step that concerns no path.
    #[error("{action}")]
    Step {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// A step of building or entering the new root.
    #[error("{action} {}", path.display())]
    Root {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a user namespace for the jail{}", remedy(.0))]
    UserNamespace(#[source] io::Error),
    #[error("the process that started this one has ended")]
    ParentEnded,
    #[error("cannot filter system calls")]
    Filter(#[source] io::Error),
}

/// What to do about a user namespace that cannot be made; see user_namespaces(7), unshare(2).
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; the kernel allows none to a process in a chroot: run rvm outside of it, or enter \
             the directory with pivot_root(2) in place of chroot(2)"
        }
        Some(libc::ENOSPC) => "; raise /proc/sys/user/max_user_namespaces",
        _ => "",
    }
}

fn step<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Step {
        action,
        source: source.into(),
    }
}

/// Enters the jail. From then on the process is killed when `parent` ends. The caller has one
/// thread.
pub fn enter(root: &Root, caps: Caps, parent: u32) -> Result<(), JailError> {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        return Err(JailError::NotInit);
    }
    let own_stat = File::open("/proc/self/stat").map_err(step("open /proc/self/stat"))?;
    limits::set_resource_limits()?;
    let user_namespaces = UserNamespaces::open()?;
    let maps = OwnMaps::read()?;
    let own_id = maps.own_id(parent);
    let ids = match (caps, own_id) {
        (Caps::None, Some(id)) => Ids::Only(id),
        _ => Ids::All,
    };
    let user_namespace = UserNamespace::make(ids, &maps)?;
    // The mount namespace must not be the user namespace's.
    root.enter()?;
    user_namespace.enter()?;
    unshare_the_rest()?;
    user_namespaces.forbid()?;
    keyring::leave_session()?;
    caps.keep(own_id)?;
    rustix::thread::set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    // A change of identity clears it (prctl(2)), so this comes late.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("set the parent death signal"))?;
    // The signal is not sent if the parent has ended already. The kernel reparents a process before
    // it checks whether to send the signal, so a process that still has its parent here will
    // receive it.
    match parent_of(own_stat).map_err(step("read the parent's pid"))? {
        Some(found) if found == parent => Ok(()),
        _ => Err(JailError::ParentEnded),
    }
}

/// Enters namespaces that belong to the caller's user namespace.
fn unshare_the_rest() -> Result<(), JailError> {
    unshare(
        UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWCGROUP,
    )
    .map_err(step("unshare the ipc, uts, network and cgroup namespaces"))
}

/// The parent's pid, from the process's stat in the host's /proc. getppid(2) returns 0, because the
/// parent is in another pid namespace.
fn parent_of(mut stat: File) -> io::Result<Option<u32>> {
    // The first fields: pid, name, which may contain anything, state, and the parent's pid.
    let mut start = [0; 128];
    let length = stat.read(&mut start)?;
    let start = String::from_utf8_lossy(&start[..length]);
    let behind_name = start.rsplit_once(") ").map(|(_, behind)| behind);
    let pid = behind_name.and_then(|fields| fields.split(' ').nth(1));
    Ok(pid.and_then(|pid| pid.parse().ok()))
}

/// Enters the jail of a process that serves the files of `shared_dir`, as [`enter`]. Returns what
/// [`own_descriptors`] does.
pub fn enter_file_server(shared_dir: &Path, parent: u32) -> Result<OwnDescriptors, JailError> {
    let own = own_descriptors()?;
    let root = Root::Directory(shared_dir.to_owned());
    enter(&root, Caps::FileServer, parent)?;
    landlock::restrict_file_server()?;
    Ok(own)
}

/// What a file server needs of /proc, which the jail lacks.
#[derive(Debug)]
pub struct OwnDescriptors {
    /// /proc/self/fd, through which it reopens its own descriptors.
    pub files: File,
    /// /proc/self/fdinfo, which tells the locks that they have.
    pub infos: File,
}

/// Opens directories of /proc/self. The caller is not in the jail yet.
///
/// The descriptors are the roots of detached mounts: from /proc/self/fd itself `..` would lead to
/// the host's /proc/sys, which root's uid alone may write to.
fn own_descriptors() -> Result<OwnDescriptors, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let open = |path| open_tree(CWD, path, flags).map(File::from);
    Ok(OwnDescriptors {
        files: open("/proc/self/fd").map_err(step("open /proc/self/fd"))?,
        infos: open("/proc/self/fdinfo").map_err(step("open /proc/self/fdinfo"))?,
    })
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
    use std::process::Command;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(") R 1 (");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = Command::new(program).arg("1000").spawn().unwrap();
        let stat = File::open(format!("/proc/{}/stat", child.id())).unwrap();
        let parent = parent_of(stat);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent.unwrap(), Some(std::process::id()));
    }

    #[test]
    fn own_descriptors_can_be_reopened_and_lead_nowhere_else() {
        let own = own_descriptors().unwrap();
        let open = |path: &str| openat(&own.files, path, OFlags::RDONLY, Mode::empty());
        let file = tempfile::tempfile().unwrap();
        open(&file.as_raw_fd().to_string()).unwrap();
        assert!(open("../../sys/kernel/core_pattern").is_err());
        assert!(open("../status").is_err());
        let number = file.as_raw_fd().to_string();
        openat(&own.infos, number, OFlags::RDONLY, Mode::empty()).unwrap();
    }
}
