//! What the guest's kernel does when a disk fails: the file system on it gives errors, and the
//! machine and its other containers go on.

use std::path::Path;

use crate::sys::{Doing as _, OsError};

/// How long XFS tries again to write what it has logged. By default it does so for ever, and
/// whoever waits for room in the log cannot be killed. A pause of the disk may be shorter.
const XFS_RETRY_SECONDS: &str = "10";

/// The classes of errors for which XFS has that default.
const XFS_CLASSES: &[&str] = &["default", "EIO", "ENOSPC"];

/// Options of a file system on a disk, which come before those that were asked for. What ext4 does
/// at an error is in the image, and may be to have the kernel panic.
pub(super) fn options(kind: &str) -> Vec<(String, Option<String>)> {
    match kind {
        "ext2" | "ext3" | "ext4" => vec![("errors".to_owned(), Some("remount-ro".to_owned()))],
        _ => Vec::new(),
    }
}

/// Changes what a file system that was mounted from this device does.
pub(super) fn limit_retries(kind: &str, node: &str) -> Result<(), OsError> {
    let (true, Some(name)) = (kind == "xfs", Path::new(node).file_name()) else {
        return Ok(());
    };
    let metadata = Path::new("/sys/fs/xfs").join(name).join("error/metadata");
    for class in XFS_CLASSES {
        let path = metadata.join(class).join("retry_timeout_seconds");
        std::fs::write(&path, XFS_RETRY_SECONDS).doing(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
