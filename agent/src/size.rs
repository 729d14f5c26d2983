//! The guest's half of a Resize: it brings CPUs online and binds the memory device to its driver.
//!
//! The host plugs CPUs and device before it calls. The driver then adds and removes memory as the
//! device asks.

use std::fs;
use std::path::Path;

use rvm_protocol::MEMORY_SLOT;

use crate::slots;
use crate::sys::{Doing as _, OsError};

/// The directory of CPUs with their `online` files. The first CPU has none: it is always online.
const CPUS: &str = "/sys/devices/system/cpu";

/// The zones that plugged memory goes to. Three quarters of it are movable, so that it can be
/// unplugged again; the rest is for the kernel too, which needs more of it as memory grows. See the
/// kernel's memory-hotplug.rst.
const POLICY: (&str, &str) = (
    "/sys/module/memory_hotplug/parameters/online_policy",
    "auto-movable",
);

#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    #[error("the guest knows of no CPU {0}")]
    NoCpu(u32),
    #[error(transparent)]
    Os(#[from] OsError),
}

/// Brings the first `count` CPUs online and takes the others offline.
pub fn set_cpus(count: u32) -> Result<(), SizeError> {
    for id in 1..count {
        if !exists(id) {
            return Err(SizeError::NoCpu(id));
        }
        set_online(id, true)?;
    }
    let surplus = (count.max(1)..).take_while(|id| exists(*id));
    for id in surplus {
        set_online(id, false)?;
    }
    Ok(())
}

fn online_file(id: u32) -> String {
    format!("{CPUS}/cpu{id}/online")
}

fn exists(id: u32) -> bool {
    Path::new(&online_file(id)).exists()
}

fn set_online(id: u32, online: bool) -> Result<(), SizeError> {
    let path = online_file(id);
    let wanted = if online { "1" } else { "0" };
    let now = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    if now.trim() == wanted {
        return Ok(());
    }
    let verb = if online { "on" } else { "off" };
    Ok(fs::write(&path, wanted).doing(|| format!("switch CPU {id} {verb}"))?)
}

/// Binds the memory device to its driver, if it is not bound yet.
pub fn bind_memory_device() -> Result<(), SizeError> {
    let slot = slots::name(MEMORY_SLOT);
    if slots::is_bound(&slot) {
        return Ok(());
    }
    let (path, value) = POLICY;
    fs::write(path, value).doing(|| format!("write {path}"))?;
    Ok(slots::bind(&slot).doing(|| "bind the memory device to its driver")?)
}
