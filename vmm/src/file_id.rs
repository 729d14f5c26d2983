//! Files as they were, to be told from what they have become.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Stat, fstat};
use serde::{Deserialize, Serialize};

/// A file as it was at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
}

impl FileId {
    /// The id of a file, as it is now. None if it cannot be looked at, nor read then.
    pub fn of(file: impl AsFd) -> Option<Self> {
        fstat(file).ok().map(|found| Self::new(&found))
    }

    /// The same of a regular file. The times of a device's node say nothing of its contents.
    pub fn of_regular(file: impl AsFd) -> Option<Self> {
        let found = fstat(file).ok()?;
        let is_regular = FileType::from_raw_mode(found.st_mode).is_file();
        is_regular.then(|| Self::new(&found))
    }

    fn new(found: &Stat) -> Self {
        Self {
            device: found.st_dev,
            inode: found.st_ino,
            size: found.st_size,
            modified: (found.st_mtime, found.st_mtime_nsec),
        }
    }

    /// Whether both are of one file, which was written to between them.
    pub fn was_written(&self, since: &Self) -> bool {
        (self.device, self.inode) == (since.device, since.inode) && self != since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_file_that_was_written_to_is_told_from_a_copy() {
        let mut file = tempfile::tempfile().unwrap();
        let id = |file: &File| FileId::of_regular(file).unwrap();
        let earlier = SystemTime::now() - Duration::from_secs(10);
        file.set_modified(earlier).unwrap();
        let before = id(&file);
        assert!(!id(&file).was_written(&before));
        file.write_all(b"more").unwrap();
        assert!(id(&file).was_written(&before));
        let copy = tempfile::tempfile().unwrap();
        assert!(!id(&copy).was_written(&before));
    }

    #[test]
    fn a_device_has_none() {
        let device = File::open("/dev/null").unwrap();
        assert_eq!(FileId::of_regular(device), None);
    }
}
