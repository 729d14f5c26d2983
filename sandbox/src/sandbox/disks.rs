//! The disks of containers in a machine: plugged into its slots, or image files in the shared
//! directory where there is no slot. Only the owner can plug a disk in, so a container that joins
//! another process's sandbox has its images in the shared directory.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use rvm_protocol::agent::{self as api, MountDisksRequest};
use rvm_protocol::vmm::{DiskConfig, Rate};
use rvm_protocol::{ContainerId, DISK_SLOT};
use tokio::sync::Mutex;

use super::{Guest, Sandbox, SandboxError};
use crate::checkpoint::SavedDisk;
use crate::disk::{self, Disk, Opened, Place, Stack};
use crate::engine::{EngineError, Machine, PlacedDisk};
use crate::host::timings::Timings;
use crate::share::{self, DISKS, SharedMount, StorageError};
use rvm_sys::error_chain::chain;

/// The stage in which the guest mounts a container's disks.
const STAGE: &str = "the mounting of the container's disks";

/// A container's disks could not be given to its machine.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The disk cannot be opened, or is in use.
    #[error("cannot open the disk {place}")]
    Open {
        /// On the host.
        place: Place,
        /// From the system call.
        #[source]
        source: io::Error,
    },
    /// A block device needs a slot, and the machine has none.
    #[error("the block device {place} cannot be used: {reason}")]
    NoSlot {
        /// On the host.
        place: Place,
        /// Why there is none.
        reason: &'static str,
    },
    /// An image file that the guest would reach as a shared file.
    #[error(
        "the disk {0} cannot be used: its machine has no slot left for another, and no limit would \
         hold for it; say \"off\" for disk_rate and org.rvm.disk-rate"
    )]
    Unlimited(Place),
    /// The container of a checkpoint had others.
    #[error("the container has {then} disks in its checkpoint, and {now} in config.json")]
    Others {
        /// How many config.json has.
        now: usize,
        /// How many it had.
        then: usize,
    },
    /// The container of a checkpoint could write to it, or could not.
    #[error(
        "the disk {0} cannot take the place of the one in the checkpoint: one of the two can be \
         written to, and the other one cannot"
    )]
    Rights(Place),
    /// The machine did not take the disk.
    #[error("cannot plug the disk {place} in")]
    Plug {
        /// On the host.
        place: Place,
        /// From the engine.
        #[source]
        source: EngineError,
    },
    /// The image could not be shared with the guest.
    #[error("cannot share the disk")]
    Share(#[from] StorageError),
    /// The guest did not mount the file systems, or has ended.
    #[error(transparent)]
    Guest(#[from] SandboxError),
}

/// The machine's slots for disks.
pub(super) struct Slots {
    free: Vec<usize>,
    /// Those of each container, in the order of its bundle.
    used: HashMap<ContainerId, Vec<SavedDisk>>,
    /// A disk's rate is limited, as it is in a slot alone.
    are_limited: bool,
}

impl Slots {
    pub(super) fn new(count: usize, rate: &Rate) -> Mutex<Self> {
        Mutex::new(Self {
            free: (DISK_SLOT..DISK_SLOT + count).rev().collect(),
            used: HashMap::new(),
            are_limited: *rate != Rate::default(),
        })
    }

    /// The disks of a container that are in slots.
    pub(super) fn of(&self, id: &ContainerId) -> Vec<SavedDisk> {
        self.used.get(id).cloned().unwrap_or_default()
    }
}

impl Sandbox {
    /// Notes the disks that a container has which was restored.
    pub(super) async fn take_disks_over(&self, id: &ContainerId, disks: &[SavedDisk]) {
        if disks.is_empty() {
            return;
        }
        let mut slots = self.disks().lock().await;
        slots
            .free
            .retain(|free| disks.iter().all(|disk| disk.slot != *free));
        slots.used.insert(id.clone(), disks.to_vec());
        self.guest().hold_disks(id, Vec::new());
    }
}

/// Opens the disks of a container that goes on from a checkpoint, for the slots that they had.
pub fn reopen(stack: &Stack, saved: &[SavedDisk]) -> Result<Vec<PlacedDisk>, DiskError> {
    let (now, then) = (stack.disks().len(), saved.len());
    if now != then {
        return Err(DiskError::Others { now, then });
    }
    let place = |(index, (disk, saved)): (usize, (&Disk, &SavedDisk))| {
        if disk.read_only != saved.read_only {
            return Err(DiskError::Rights(disk.place.clone()));
        }
        let opened = open(disk)?;
        Ok(PlacedDisk {
            slot: saved.slot,
            disk: config_of(saved.slot, disk, stack.is_layer(index), &opened),
            file: opened.file,
            name: disk.place.to_string(),
        })
    };
    let pairs = stack.disks().iter().zip(saved);
    pairs.enumerate().map(place).collect()
}

fn open(disk: &Disk) -> Result<Opened, DiskError> {
    disk::open(disk).map_err(|source| DiskError::Open {
        place: disk.place.clone(),
        source,
    })
}

fn config_of(slot: usize, disk: &Disk, is_layer: bool, opened: &Opened) -> DiskConfig {
    DiskConfig {
        read_only: disk.read_only,
        serial: format!("rvm-disk-{slot}"),
        block_size: opened.block_size,
        layer: is_layer && opened.number.is_none(),
    }
}

/// Gives the disks of a container to its machine, and has the guest mount them. `owned` is the
/// sandbox if this process owns it.
pub async fn attach(
    id: &ContainerId,
    stack: &Stack,
    guest: &Guest,
    owned: Option<&Sandbox>,
    timings: &mut Timings,
) -> Result<(), DiskError> {
    if stack.is_empty() {
        return Ok(());
    }
    let attached = Attaching { id, guest, owned };
    let attached = attached.all(stack, timings).await;
    if attached.is_err() {
        give_up(id, guest, owned).await;
    }
    timings.lap("mount the disks");
    attached
}

/// Has the guest let go of the disks of a container that could not be created, and takes them out
/// of the machine.
pub async fn give_up(id: &ContainerId, guest: &Guest, owned: Option<&Sandbox>) {
    if guest.has_disks(id) {
        // The agent may not know the container.
        let _ = guest.agent().remove_container(id).await;
        release(id, guest, owned).await;
    }
}

/// Takes the disks of a container that was removed from its guest out of the machine.
pub async fn release(id: &ContainerId, guest: &Guest, owned: Option<&Sandbox>) {
    if !guest.let_disks_go(id) {
        return;
    }
    let Some(sandbox) = owned else { return };
    let mut slots = sandbox.disks().lock().await;
    for SavedDisk { slot, .. } in slots.used.remove(id).unwrap_or_default() {
        match sandbox.machine().unplug_disk(slot).await {
            Ok(()) => slots.free.push(slot),
            Err(error) => tracing::warn!("a disk of container {id} stays: {}", chain(&error)),
        }
    }
}

struct Attaching<'a> {
    id: &'a ContainerId,
    guest: &'a Guest,
    owned: Option<&'a Sandbox>,
}

impl Attaching<'_> {
    async fn all(&self, stack: &Stack, timings: &Timings) -> Result<(), DiskError> {
        // From now on there is something to release.
        self.guest.hold_disks(self.id, Vec::new());
        let mut disks = Vec::new();
        let mut images = Vec::new();
        for (index, disk) in stack.disks().iter().enumerate() {
            let opened = open(disk)?;
            let plugged = match self.owned {
                Some(sandbox) => {
                    let layer = stack.is_layer(index);
                    self.plug(sandbox, (disk, layer), &opened).await?
                }
                None => None,
            };
            disks.push(match (plugged, &disk.place) {
                (Some(slot), _) => in_slot(slot, &opened),
                (None, Place::Path(path)) if opened.number.is_none() => {
                    // It stays open for its lock.
                    images.push(opened.file);
                    self.share(path, disk.read_only, index)?
                }
                _ => return Err(self.no_slot(disk)),
            });
        }
        self.guest.hold_disks(self.id, images);
        let request = MountDisksRequest {
            container_id: self.id.to_string(),
            disks,
            file_systems: stack.file_systems().to_vec(),
            ..Default::default()
        };
        let limit = self.guest.start_timeout();
        let mounted = self.guest.agent().mount_disks(&request, limit);
        Ok(self.guest.guarded(STAGE, timings, mounted).await?)
    }

    /// Plugs a disk into a free slot. None if there is no slot.
    async fn plug(
        &self,
        sandbox: &Sandbox,
        (disk, is_layer): (&Disk, bool),
        opened: &Opened,
    ) -> Result<Option<usize>, DiskError> {
        let mut slots = sandbox.disks().lock().await;
        let Some(slot) = slots.free.pop() else {
            return match slots.are_limited {
                true => Err(DiskError::Unlimited(disk.place.clone())),
                false => Ok(None),
            };
        };
        let config = config_of(slot, disk, is_layer, opened);
        let plugged = sandbox.machine().plug_disk(slot, &opened.file, config);
        match plugged.await {
            Ok(()) => {
                let read_only = disk.read_only;
                let used = slots.used.entry(self.id.clone()).or_default();
                used.push(SavedDisk { slot, read_only });
                Ok(Some(slot))
            }
            Err(source) => {
                slots.free.push(slot);
                Err(DiskError::Plug {
                    place: disk.place.clone(),
                    source,
                })
            }
        }
    }

    fn share(&self, path: &Path, read_only: bool, index: usize) -> Result<api::Disk, DiskError> {
        let place = Path::new(self.id.as_str())
            .join(DISKS)
            .join(index.to_string());
        let mut wanted = SharedMount::new(path.to_owned(), place);
        wanted.read_only = Some(read_only);
        share::share(&self.guest.dir().shared(), &wanted)?;
        Ok(api::Disk {
            image: wanted.place.to_string_lossy().into_owned(),
            read_only,
            ..Default::default()
        })
    }

    fn no_slot(&self, disk: &Disk) -> DiskError {
        let reason = match self.owned.map(Sandbox::machine).map(Machine::engine) {
            Some(engine) => match engine.disk_hotplug {
                Err(words) => words,
                Ok(()) => "its machine has no slot left for another disk",
            },
            None => "a container that joins a sandbox of another process can have image files only",
        };
        DiskError::NoSlot {
            place: disk.place.clone(),
            reason,
        }
    }
}

fn in_slot(slot: usize, opened: &Opened) -> api::Disk {
    let number = opened.number.map(|(major, minor)| api::DeviceNumber {
        major,
        minor,
        ..Default::default()
    });
    api::Disk {
        slot: u32::try_from(slot).unwrap_or_default(),
        number: number.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_disks_are_opened_for_their_slots_and_others_refused() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut stack = Stack::default();
        stack.add_disk(Disk::new(image.path().to_owned(), "ext4", false));
        let saved = |read_only| SavedDisk { slot: 7, read_only };
        let opened = reopen(&stack, &[saved(false)]).unwrap();
        let [placed] = &opened[..] else {
            panic!("{} disks", opened.len());
        };
        assert_eq!(
            (placed.slot, placed.disk.serial.as_str()),
            (7, "rvm-disk-7")
        );
        assert_eq!(placed.name, image.path().to_str().unwrap());
        let again = reopen(&stack, &[saved(false)]);
        assert!(matches!(again, Err(DiskError::Open { .. })), "it is locked");
        drop(opened);
        let refused = reopen(&stack, &[saved(true)]);
        assert!(matches!(refused, Err(DiskError::Rights(_))));
        for others in [&[][..], &[saved(false), saved(false)]] {
            let refused = reopen(&stack, others);
            assert!(matches!(refused, Err(DiskError::Others { now: 1, .. })));
        }
    }
}
