//! The guest's size, as the host asks for it (Resize): CPUs that are online, and the device through
//! which memory comes and goes.
//!
//! The host has made the CPUs and the device before it asks. What memory there is then is between
//! the device and its driver.

use std::fs;
use std::path::Path;

use rvm_protocol::MEMORY_SLOT;

use crate::sys::{Doing as _, OsError};

/// Where CPUs go online and offline. The first has no switch: it is always online.
const CPUS: &str = "/sys/devices/system/cpu";

/// The driver of virtio-mmio slots.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// What memory is used for that is plugged. Three quarters of it are for programs alone, so that it
/// can be unplugged again; the rest is for the kernel too, which needs more the more memory there
/// is. See the kernel's memory-hotplug.rst.
const POLICY: (&str, &str) = (
    "/sys/module/memory_hotplug/parameters/online_policy",
    "auto-movable",
);

/// The guest does not go along.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// The guest's kernel has no such CPU.
    #[error("the guest knows of no CPU {0}")]
    NoCpu(u32),
    /// The kernel refuses.
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Brings the first `count` CPUs online and takes the others offline.
pub fn set_cpus(count: u32) -> Result<(), SizeError> {
    // Those that come first, so that the last to go leaves somebody to do the work.
    for id in 1..count {
        if !exists(id) {
            return Err(SizeError::NoCpu(id));
        }
        switch(id, true)?;
    }
    let surplus = (count.max(1)..).take_while(|id| exists(*id));
    for id in surplus {
        switch(id, false)?;
    }
    Ok(())
}

fn switch_of(id: u32) -> String {
    format!("{CPUS}/cpu{id}/online")
}

fn exists(id: u32) -> bool {
    Path::new(&switch_of(id)).exists()
}

fn switch(id: u32, online: bool) -> Result<(), SizeError> {
    let path = switch_of(id);
    let wanted = if online { "1" } else { "0" };
    let now = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    if now.trim() == wanted {
        return Ok(());
    }
    let verb = if online { "on" } else { "off" };
    Ok(fs::write(&path, wanted).doing(|| format!("switch CPU {id} {verb}"))?)
}

/// Gives the memory device its driver, if it has none yet.
pub fn take_memory_device() -> Result<(), SizeError> {
    let slot = format!("virtio-mmio.{MEMORY_SLOT}");
    if Path::new(DRIVER).join(&slot).exists() {
        return Ok(());
    }
    let (path, value) = POLICY;
    fs::write(path, value).doing(|| format!("write {path}"))?;
    let path = format!("{DRIVER}/bind");
    Ok(fs::write(&path, slot).doing(|| "bind the memory device to its driver".to_owned())?)
}
