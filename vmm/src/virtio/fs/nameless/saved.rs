//! The files without a name in a saved state. A file that virtiofsd knew and whose name was removed
//! is one of them after the restore, by the numbers that it had.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl};

use super::{GUESTS_FLAGS, Handle, Inode, Known, Nameless};

/// A file that the guest knows.
pub struct KnownFile {
    pub inode: Inode,
    pub references: u64,
    pub is_linkable: bool,
    pub file: Arc<File>,
}

impl Nameless {
    pub fn known(&self) -> Vec<KnownFile> {
        let state = self.lock();
        let known = state.inodes.iter().map(|(&inode, known)| KnownFile {
            inode,
            references: known.references,
            is_linkable: known.is_linkable,
            file: Arc::clone(&known.file),
        });
        known.collect()
    }

    /// Each handle with its inode and the flags with which it is open.
    pub fn opened_handles(&self) -> io::Result<Vec<(Handle, Inode, i32)>> {
        let state = self.lock();
        let handles = state.handles.iter().map(|(&handle, (inode, file))| {
            let flags = fcntl_getfl(file)? & GUESTS_FLAGS;
            Ok((handle, *inode, flags.bits().cast_signed()))
        });
        handles.collect()
    }

    /// The number of inodes and handles that were made so far.
    pub fn made(&self) -> u64 {
        self.lock().next
    }

    /// Continues to count where another left off.
    pub fn set_made(&self, made: u64) {
        self.lock().next = made;
    }

    /// Takes over a file that the guest knows by this inode.
    pub fn adopt(&self, known: KnownFile) -> io::Result<()> {
        self.check_limit(1)?;
        let mut state = self.lock();
        state.adopted.insert(known.inode);
        self.has_adopted
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let KnownFile {
            inode,
            references,
            is_linkable,
            file,
        } = known;
        let known = Known {
            file,
            references,
            is_linkable,
        };
        state.inodes.insert(inode, known);
        Ok(())
    }

    /// Opens a file for a handle that the guest has.
    pub fn adopt_handle(&self, handle: Handle, inode: Inode, flags: i32) -> io::Result<()> {
        self.check_limit(1)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let file = self.reopen(inode, flags & GUESTS_FLAGS & !OFlags::TRUNC)?;
        self.lock().handles.insert(handle, (inode, Arc::new(file)));
        Ok(())
    }
}
