//! The guest's device of a disk: a virtio-blk device in a slot of the machine, bound to its driver,
//! or a loop device on an image file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::device_map::{MappedDevice, Number, parse_number};
use super::request::Disk;
use crate::slots;
use crate::sys::loop_device::LoopDevice;
use crate::sys::{Doing as _, OsError};

/// How long a device may stay in use after its file systems were unmounted: the mount namespace of
/// a process that has just ended goes a little later.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_PAUSE: Duration = Duration::from_millis(2);

/// What the kernel calls disks that are mapped into the address space.
const MAPPED: &str = "/dev/pmem";

/// A device that is attached. Dropping it waits until nothing uses the device, and detaches it.
#[derive(Debug)]
pub(super) enum Device {
    Slot {
        slot: usize,
        /// The number that the host has for it, if it is a block device there.
        host: Option<Number>,
        guest: Number,
        node: String,
    },
    /// The kernel detaches a loop device when nothing uses it any more.
    Image(LoopDevice),
}

impl Device {
    pub(super) fn attach(disk: &Disk) -> Result<Self, OsError> {
        match disk {
            Disk::Slot { slot, host } => Self::bind(*slot, *host),
            Disk::Image { path, read_only } => {
                let attached = LoopDevice::attach(path, *read_only);
                let attached = attached.doing(|| format!("attach {}", path.display()));
                Ok(Self::Image(attached?))
            }
        }
    }

    fn bind(slot: usize, host: Option<Number>) -> Result<Self, OsError> {
        slots::bind(&slots::name(slot))
            .doing(|| format!("bind the disk in slot {slot} to its driver"))?;
        // Unbinds it if the disk is not found.
        let mut device = Self::Slot {
            slot,
            host,
            guest: (0, 0),
            node: String::new(),
        };
        if let Self::Slot { guest, node, .. } = &mut device {
            (*guest, *node) = find(slot).doing(|| format!("find the disk in slot {slot}"))?;
        }
        Ok(device)
    }

    /// What the configuration may name by the host's number.
    pub(super) fn mapped(&self) -> Option<MappedDevice> {
        match self {
            Self::Slot {
                host: Some(host),
                guest,
                node,
                ..
            } => Some(MappedDevice {
                host: *host,
                guest: *guest,
                node: node.clone(),
            }),
            _ => None,
        }
    }

    /// Whether it is mapped into the address space, so that files can be used where they are.
    pub(super) fn is_mapped(&self) -> bool {
        self.node().starts_with(MAPPED)
    }

    /// The path of the device.
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Slot { node, .. } => node,
            Self::Image(device) => device.node(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Self::Slot { slot, node, .. } = self {
            wait_until_unused(node);
            if let Err(error) = slots::unbind(&slots::name(*slot)) {
                log::warn!("unbind the disk in slot {slot}: {error}");
            }
        }
    }
}

/// Number and node of the disk in a slot: platform/virtio-mmio.N/virtioM/block/NAME, or, of one
/// that is mapped, platform/virtio-mmio.N/virtioM/ndbusN/regionN/namespaceN.N/block/NAME.
fn find(slot: usize) -> io::Result<(Number, String)> {
    let none = || io::Error::from(io::ErrorKind::NotFound);
    let mut device = child(&slots::path(&slots::name(slot)), "virtio")?;
    if !device.join("block").is_dir() {
        device = child(&device, "ndbus")?;
        // Waits until the driver has made what is below it.
        fs::read(device.join("wait_probe"))?;
        for below in ["region", "namespace"] {
            device = child(&device, below)?;
        }
    }
    let block = fs::read_dir(device.join("block"))?;
    let block = block.into_iter().next().ok_or_else(none)??;
    let number = fs::read_to_string(block.path().join("dev"))?;
    let number = parse_number(&number).ok_or_else(none)?;
    Ok((number, format!("/dev/{}", block.file_name().display())))
}

/// The directory that begins so and then has a number.
fn child(dir: &Path, prefix: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if number.is_some_and(|number| number.starts_with(|it: char| it.is_ascii_digit())) {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Waits until a device can be had exclusively, as one that is not mounted can.
fn wait_until_unused(node: &str) {
    let start = Instant::now();
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    while start.elapsed() < RELEASE_TIMEOUT {
        match rustix::fs::open(node, flags, Mode::empty()) {
            Err(Errno::BUSY) => sleep(RELEASE_PAUSE),
            _ => return,
        }
    }
    log::warn!(
        "{node} is in use {} s after it was unmounted",
        RELEASE_TIMEOUT.as_secs()
    );
}
