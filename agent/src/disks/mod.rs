//! Disks of containers: plugged into the machine, or image files of the shared directory, and the
//! file systems on them (see the protocol's `MountDisks`).
//!
//! An image comes from anybody: this guest's kernel parses it, not the host's. A container finds
//! its file systems in [`DISKS_DIR`] by its id and their numbers; its configuration binds them from
//! there.
//!
//! Everything here may wait for a disk of the host, so it runs on threads that may block.

mod device;
mod device_map;
mod faults;
mod layers;
mod request;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rvm_protocol::agent::MountDisksRequest;
use rvm_protocol::{ContainerId, DISKS_DIR};

use crate::sys::{Doing as _, OsError};
use device::Device;
pub use device_map::{DeviceMap, LOOP, MappedDevice, parse_number};
pub use request::InvalidDisks;
use request::{FileSystem, Plan};

/// A container's disks could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(transparent)]
    Request(#[from] InvalidDisks),
    #[error("the container {0} has disks already")]
    Exists(ContainerId),
    #[error("cannot use disk {index}")]
    Device {
        index: usize,
        #[source]
        source: OsError,
    },
    #[error("cannot mount the file system {kind} of the disks")]
    Mount {
        kind: String,
        #[source]
        source: OsError,
    },
    /// The thread that was to do it panicked.
    #[error("the agent dropped the request")]
    Dropped,
}

/// The disks of all containers. A copy is another handle.
#[derive(Clone, Default)]
pub struct Disks(Arc<Mutex<HashMap<ContainerId, Mounted>>>);

/// The disks of a container. Dropping them unmounts their file systems, waits until nothing uses
/// the disks, and unbinds them.
struct Mounted {
    // The file systems go first.
    file_systems: Vec<Mount>,
    devices: Vec<Device>,
    dir: PathBuf,
}

/// A mounted file system.
struct Mount(PathBuf);

/// What a request plans: disks and directories that are there, and paths that lead nowhere else.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check_request(request: &MountDisksRequest) {
    use request::{Disk, Source};

    let Ok(plan) = Plan::parse(request) else {
        return;
    };
    let is_relative = |path: &Path| {
        let is_name = |part| matches!(part, std::path::Component::Normal(_));
        path.components().all(is_name)
    };
    for disk in &plan.disks {
        match disk {
            Disk::Slot { slot, .. } => assert!(*slot >= rvm_protocol::DISK_SLOT),
            Disk::Image { path, .. } => {
                let below = path.strip_prefix(rvm_protocol::SHARED_DIR);
                assert!(below.is_ok_and(is_relative), "{path:?}");
            }
        }
    }
    for (index, file_system) in plan.file_systems.iter().enumerate() {
        let new = file_system.new_directories.iter();
        let mut directories: Vec<_> = new.map(|new| &new.directory).collect();
        match &file_system.source {
            Source::Disks(list) => assert!(list.iter().all(|disk| *disk < plan.disks.len())),
            Source::Bind(directory) => directories.push(directory),
            Source::Overlay { lower, upper } => {
                directories.extend(lower);
                directories.extend(upper.iter().flat_map(|(upper, work)| [upper, work]));
            }
        }
        let is_right = |it: &&request::Directory| it.file_system < index && is_relative(&it.path);
        assert!(directories.iter().all(is_right), "{file_system:?}");
    }
}

impl Disks {
    /// Attaches a container's disks and mounts their file systems, before the container is made.
    pub async fn mount(
        &self,
        id: &ContainerId,
        request: &MountDisksRequest,
    ) -> Result<(), DiskError> {
        let plan = Plan::parse(request)?;
        if self.lock().contains_key(id) {
            return Err(DiskError::Exists(id.clone()));
        }
        let dir = Path::new(DISKS_DIR).join(id.as_str());
        let mounted = in_thread(move || Mounted::new(dir, &plan)).await;
        self.lock().insert(id.clone(), mounted??);
        Ok(())
    }

    /// The block devices of the host that are disks of a container.
    pub fn devices(&self, id: &ContainerId) -> DeviceMap {
        match self.lock().get(id) {
            Some(mounted) => DeviceMap::new(mounted.devices.iter().filter_map(Device::mapped)),
            None => DeviceMap::default(),
        }
    }

    /// Unmounts a container's file systems, if it has any. None of its processes is left.
    pub async fn remove(&self, id: &ContainerId) {
        let mounted = self.lock().remove(id);
        if let Some(mounted) = mounted {
            let _ = in_thread(move || drop(mounted)).await;
        }
    }

    /// Unmounts a container's file systems, and leaves its disks attached.
    pub async fn unmount(&self, id: &ContainerId) {
        let file_systems = match self.lock().get_mut(id) {
            Some(mounted) => std::mem::take(&mut mounted.file_systems),
            None => return,
        };
        let _ = in_thread(move || unmount_all(file_systems)).await;
    }

    /// Waits until the disks of a container have what was written to their file systems.
    pub async fn sync(&self, id: &ContainerId) {
        let paths: Vec<PathBuf> = match self.lock().get(id) {
            Some(mounted) => mounted.file_systems.iter().map(|m| m.0.clone()).collect(),
            None => return,
        };
        let _ = in_thread(move || paths.iter().for_each(|path| sync(path))).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Mounted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DiskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| DiskError::Dropped)
}

impl Mounted {
    fn new(dir: PathBuf, plan: &Plan) -> Result<Self, DiskError> {
        // What is there when a step fails is undone.
        let mut this = Self {
            file_systems: Vec::new(),
            devices: Vec::new(),
            dir,
        };
        for (index, disk) in plan.disks.iter().enumerate() {
            let device = Device::attach(disk);
            let device = device.map_err(|source| DiskError::Device { index, source })?;
            this.devices.push(device);
        }
        for file_system in &plan.file_systems {
            this.mount(file_system).map_err(|source| DiskError::Mount {
                kind: file_system.kind.clone(),
                source,
            })?;
        }
        Ok(this)
    }

    fn mount(&mut self, file_system: &FileSystem) -> Result<(), OsError> {
        let place = self.dir.join(self.file_systems.len().to_string());
        let mounted = layers::mount(file_system, &self.dir, &self.devices)?;
        fs::create_dir_all(&place).doing(|| format!("make directory {}", place.display()))?;
        let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mounted, "", CWD, &place, from_descriptor)
            .doing(|| format!("mount on {}", place.display()))?;
        self.file_systems.push(Mount(place));
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount_all(std::mem::take(&mut self.file_systems));
        self.devices.clear();
        // What is still a mount point stays, and its directory too.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Unmounts file systems, the last first.
fn unmount_all(mut file_systems: Vec<Mount>) {
    while file_systems.pop().is_some() {}
}

impl Drop for Mount {
    fn drop(&mut self) {
        // An unmount that finds the file system in use elsewhere writes nothing out.
        sync(&self.0);
        match unmount(&self.0, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                if let Err(errno) = unmount(&self.0, flags) {
                    log::warn!("unmount {}: {errno}", self.0.display());
                }
            }
            Err(errno) => log::warn!("unmount {}: {errno}", self.0.display()),
            Ok(()) => {}
        }
        // A directory that is still a mount point stays.
        let _ = fs::remove_dir(&self.0);
    }
}

fn sync(path: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let synced = rustix::fs::open(path, flags, Mode::empty()).and_then(rustix::fs::syncfs);
    if let Err(errno) = synced {
        log::warn!("write {} to its disk: {errno}", path.display());
    }
}
