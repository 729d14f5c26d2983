//! The guest's own device nodes, by their numbers.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys::{Doing as _, OsError};

/// The directory of sysfs that has devices by their numbers.
pub const BY_NUMBER: &str = "/sys/dev/";

/// Devices that udev opens to every user, and devtmpfs to root alone.
const WORLD_ACCESSIBLE: [&str; 2] = ["fuse", "net/tun"];

/// A detached mount of the node of a device, by its path in /sys/dev, such as `/sys/dev/char/1:3`.
pub fn node(by_number: &str) -> Result<OwnedFd, OsError> {
    let name = name(by_number).doing(|| {
        let numbers = by_number
            .trim_start_matches(BY_NUMBER)
            .replace('/', " device ");
        format!("find {numbers} in the guest")
    })?;
    let path = format!("/dev/{name}");
    if WORLD_ACCESSIBLE.contains(&name.as_str()) {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::chmod(path.as_str(), mode).doing(|| format!("open {path} to all"))?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path.as_str(), flags).doing(|| format!("stat {path}"))
}

/// The name of a device below /dev.
fn name(by_number: &str) -> rustix::io::Result<String> {
    let text = std::fs::read_to_string(format!("{by_number}/uevent")).map_err(|_| Errno::NODEV)?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(str::to_owned).ok_or(Errno::NODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_numbers() {
        assert_eq!(name("/sys/dev/char/1:3").as_deref(), Ok("null"));
        let error = node("/sys/dev/char/4095:7").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("find char device 4095:7 in the guest"),
            "{error}"
        );
    }
}
