//! Standard streams for a process that may have been started without.

use rustix::fs::{Mode, OFlags};

use crate::sys::{Doing as _, OsError};

/// Opens what is missing of descriptors 0 to 2.
///
/// The kernel leaves them closed when it has no console driver; the next files to be opened would
/// then take their numbers, and log lines would be written into them.
pub fn open_missing_standard_streams() -> Result<(), OsError> {
    loop {
        let file = open("/dev/console").or_else(|_| open("/dev/null"));
        let file = file.doing(|| "open /dev/null")?;
        if std::os::fd::AsRawFd::as_raw_fd(&file) > 2 {
            return Ok(());
        }
        // It stays open for good at the number it took.
        std::mem::forget(file);
    }
}

fn open(path: &str) -> rustix::io::Result<std::os::fd::OwnedFd> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
}
