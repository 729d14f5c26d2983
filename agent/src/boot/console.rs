//! Standard streams for an init that the kernel may have started without.

use rustix::fs::{Mode, OFlags};

use crate::sys::{Doing as _, OsError};

/// Opens those of descriptors 0 to 2 that are closed.
///
/// The kernel leaves them closed when it has no console driver. The next open files would then take
/// their numbers, and the logger would write into them.
pub fn open_missing_standard_streams() -> Result<(), OsError> {
    loop {
        let file = open("/dev/console").or_else(|_| open("/dev/null"));
        let file = file.doing(|| "open /dev/null")?;
        if std::os::fd::AsRawFd::as_raw_fd(&file) > 2 {
            return Ok(());
        }
        // Keeps the descriptor open for good.
        std::mem::forget(file);
    }
}

fn open(path: &str) -> rustix::io::Result<std::os::fd::OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
}
