//! Directories of the host that containers mount.
//!
//! Each is a file system of its own, which the guest's kernel mounts when a path
//! through it is first resolved (fuse_dentry_automount), and once more in every mount namespace
//! that has no copy of that mount yet. Two such instances share nothing: a program cannot connect
//! to a socket in the other instance, locks do not conflict, and mappings of a file are not the
//! same memory. So the agent resolves the path before the container's mount namespace is made. The
//! namespace then has a copy of the mount, of the same instance for all containers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rvm_protocol::SHARED_DIR;

/// The directories that are mounted in the agent's namespace, by path. A copy is another handle.
#[derive(Clone, Default)]
pub struct HostDirs(Arc<Mutex<HashMap<String, Weak<HostDir>>>>);

/// A directory, which stays mounted while a container holds this.
pub struct HostDir(String);

impl HostDirs {
    /// Has the kernel mount the directory, if the path is the host's. An error is ignored here: the
    /// container reports it when it mounts the directory.
    pub fn mount(&self, path: &str) -> Option<Arc<HostDir>> {
        if !path.strip_prefix(SHARED_DIR)?.starts_with('/') {
            return None;
        }
        let mut mounted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.retain(|_, dir| dir.strong_count() > 0);
        if let Some(dir) = mounted.get(path).and_then(Weak::upgrade) {
            return Some(dir);
        }
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC).ok()?;
        let dir = Arc::new(HostDir(path.to_owned()));
        mounted.insert(path.to_owned(), Arc::downgrade(&dir));
        Some(dir)
    }
}

impl Drop for HostDir {
    fn drop(&mut self) {
        // Fails for a file: it is no mount.
        let _ = unmount(self.0.as_str(), UnmountFlags::DETACH);
    }
}
