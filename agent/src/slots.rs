//! The machine's virtio-mmio slots, platform devices of the guest. An empty slot and an unbound
//! device look the same there; only binding tells them apart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The bus of the slots.
pub const DEVICES: &str = "/sys/bus/platform/devices";

/// Their driver.
pub const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// The prefix of a slot's name; a number follows.
pub const PREFIX: &str = "virtio-mmio.";

/// The name of a slot.
pub fn name(number: usize) -> String {
    format!("{PREFIX}{number}")
}

/// The directory of a slot in sysfs.
pub fn path(number: usize) -> PathBuf {
    Path::new(DEVICES).join(name(number))
}

/// Whether a slot's device is bound to its driver.
pub fn is_bound(number: usize) -> bool {
    Path::new(DRIVER).join(name(number)).exists()
}

/// Binds the device in a slot to its driver. ENODEV if the slot is empty.
pub fn bind(number: usize) -> io::Result<()> {
    fs::write(format!("{DRIVER}/bind"), name(number))
}

/// Unbinds the device in a slot.
pub fn unbind(number: usize) -> io::Result<()> {
    fs::write(format!("{DRIVER}/unbind"), name(number))
}
