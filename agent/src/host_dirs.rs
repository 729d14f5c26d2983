//! Directories of the host that containers mount.
//!
//! On virtio-fs each is a file system of its own, which the guest's kernel mounts when somebody first goes
//! there (fuse_dentry_automount), and once more in every mount namespace that has no copy of it yet.
//! Two of these know nothing of each other: a socket in the one cannot be connected to in the other,
//! locks do not meet and maps of a file are not the same memory. So the agent goes there before the
//! container has a namespace, which is then a copy with the mount in it, for all containers the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rvm_protocol::SHARED_DIR;

/// Those that are mounted in the agent's namespace.
#[derive(Clone, Default)]
pub struct HostDirs(Arc<Mutex<HashMap<String, Weak<HostDir>>>>);

/// One of them, which stays mounted as long as some container has this.
pub struct HostDir(String);

impl HostDirs {
    /// Has the kernel mount what lies there, if it is the host's. What is wrong with it is told when the
    /// container mounts it.
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
        // A file, and anything on 9p, is no mount.
        let _ = unmount(self.0.as_str(), UnmountFlags::DETACH);
    }
}
