//! Inodes that the guest knows and that the device does not find any more after a restore. Requests
//! that concern them get ESTALE, after which the guest's kernel looks the path up again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::Inode;

#[derive(Default)]
pub struct Lost {
    /// There are such inodes, so that requests of a device that has none need no lock.
    any: AtomicBool,
    /// With how often the guest must forget each.
    inodes: Mutex<BTreeMap<Inode, u64>>,
}

impl Lost {
    pub fn contains(&self, inode: Inode) -> bool {
        self.any.load(Ordering::Relaxed) && self.lock().contains_key(&inode)
    }

    pub fn all(&self) -> Vec<(Inode, u64)> {
        self.lock()
            .iter()
            .map(|(&inode, &references)| (inode, references))
            .collect()
    }

    pub fn set(&self, inodes: BTreeMap<Inode, u64>) {
        let mut all = self.lock();
        self.any.store(!inodes.is_empty(), Ordering::Relaxed);
        *all = inodes;
    }

    pub fn forget(&self, inode: Inode, count: u64) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut all = self.lock();
        if let Some(references) = all.get_mut(&inode) {
            *references = references.saturating_sub(count);
            if *references == 0 {
                all.remove(&inode);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Inode, u64>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
