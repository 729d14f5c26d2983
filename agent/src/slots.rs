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

/// The directory in sysfs of the slot of this name.
pub fn path(slot: &str) -> PathBuf {
    Path::new(DEVICES).join(slot)
}

/// Whether the device in the slot of this name is bound to its driver.
pub fn is_bound(slot: &str) -> bool {
    Path::new(DRIVER).join(slot).exists()
}

/// Binds the device in the slot of this name to its driver. ENODEV if the slot is empty.
pub fn bind(slot: &str) -> io::Result<()> {
    fs::write(format!("{DRIVER}/bind"), slot)
}

/// Unbinds the device in the slot of this name.
pub fn unbind(slot: &str) -> io::Result<()> {
    fs::write(format!("{DRIVER}/unbind"), slot)
}
