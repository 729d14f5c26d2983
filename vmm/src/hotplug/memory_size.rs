//! The size of a running machine's memory: the size that the host requests, and how far the guest
//! has followed.
//!
//! Memory beyond that of the boot is plugged by the virtio-mem device, which is plugged itself when
//! it is first needed. A size below the memory of the boot inflates the balloon.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::memory::{HotplugMemory, HotplugMemoryError};
use crate::bus::{Bus, BusError, FixedSlot};
use crate::kvm::Vm;
use crate::logging::error_chain;
use crate::memory::CurrentMemory;
use crate::virtio::balloon;
use crate::virtio::mem::{BLOCK, Mem, Sizes};
use crate::virtio::slot::Slot;

/// The memory could not be resized.
#[derive(Debug, thiserror::Error)]
pub enum MemorySizeError {
    #[error("{wanted_mib} MiB of memory; the machine was started with room for {max_mib} MiB")]
    TooMuch { wanted_mib: u64, max_mib: u64 },
    #[error(transparent)]
    Memory(#[from] HotplugMemoryError),
    #[error(transparent)]
    Device(#[from] BusError),
}

/// The memory that was plugged into a machine, in a state that may be damaged. Which blocks the
/// guest uses, the state of the virtio-mem device says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    /// See [`HotplugMemory::slot_ends`].
    pub slot_ends: Vec<u64>,
    /// How many bytes were requested.
    pub requested: u64,
}

impl Grown {
    /// The virtio-mem device of a machine whose `hotplug` memory is there again.
    pub fn device(&self, hotplug: &HotplugMemory, sizes: &Sizes) -> Mem {
        sizes.set_usable(hotplug.usable());
        sizes.request(self.requested);
        Mem::new(hotplug.region().clone(), sizes.clone())
    }
}

pub struct MemorySize {
    boot_mib: u64,
    memory: CurrentMemory,
    hotplug: HotplugMemory,
    balloon: Balloon,
    sizes: Sizes,
    /// The virtio-mem device. None before it is first needed.
    device: Option<Arc<Slot>>,
    /// The size that was requested last, until the guest has it.
    awaited_mib: Option<u64>,
}

/// The balloon of a machine: its target size, and the slot whose interrupt announces a new one.
pub struct Balloon {
    pub target: balloon::Target,
    pub slot: Arc<Slot>,
}

impl MemorySize {
    /// The size of a machine that boots with `boot_mib` and may grow by `hotplug`, or has grown if
    /// there is a device.
    pub fn new(
        (boot_mib, memory): (u64, CurrentMemory),
        (hotplug, sizes, device): (HotplugMemory, Sizes, Option<Arc<Slot>>),
        balloon: Balloon,
    ) -> Self {
        Self {
            boot_mib,
            memory,
            hotplug,
            balloon,
            sizes,
            device,
            awaited_mib: None,
        }
    }

    /// The memory beyond that of the boot, if there ever was any.
    pub fn grown(&self) -> Option<Grown> {
        self.device.as_ref().map(|_| Grown {
            slot_ends: self.hotplug.slot_ends().to_vec(),
            requested: self.sizes.requested(),
        })
    }

    /// The guest's memory, as the devices see it.
    pub fn current(&self) -> &CurrentMemory {
        &self.memory
    }

    /// Asks the guest to resize its memory to `mib` MiB.
    pub fn resize_to(&mut self, mib: u64, vm: &Vm, bus: &Bus) -> Result<(), MemorySizeError> {
        // The driver plugs whole blocks.
        let more = (mib.saturating_sub(self.boot_mib) << 20).next_multiple_of(BLOCK);
        let region = self.hotplug.region();
        let room = region.end - region.start;
        if more > room {
            return Err(MemorySizeError::TooMuch {
                wanted_mib: mib,
                max_mib: self.boot_mib + (room >> 20),
            });
        }
        if more > 0 {
            self.plug_device(vm, bus)?;
        }
        // The region shrinks in `take_reached`, when the driver cannot be about to plug a block
        // there.
        let usable = more.max(self.hotplug.usable());
        self.hotplug.set_usable(usable, vm, &self.memory)?;
        self.sizes.set_usable(self.hotplug.usable());
        self.sizes.request(more);
        if let Some(device) = &self.device {
            device.interrupt().notify_config_change();
        }
        let Balloon { target, slot } = &self.balloon;
        target.set_mib(self.boot_mib.saturating_sub(mib));
        slot.interrupt().notify_config_change();
        self.awaited_mib = Some(mib);
        Ok(())
    }

    fn plug_device(&mut self, vm: &Vm, bus: &Bus) -> Result<(), MemorySizeError> {
        if self.device.is_none() {
            let device = Mem::new(self.hotplug.region().clone(), self.sizes.clone());
            let slot = bus.plug(vm, FixedSlot::Memory as usize, Box::new(device))?;
            self.device = Some(slot);
        }
        Ok(())
    }

    /// The size that was requested last, once, when the guest has reached it. Memory that the guest
    /// has unplugged is then removed from the machine.
    pub fn take_reached(&mut self, vm: &Vm) -> Option<u64> {
        self.awaited_mib?;
        if self.sizes.plugged() != self.sizes.requested() || !self.balloon.target.is_reached() {
            return None;
        }
        if let Err(error) = self.hotplug.set_usable(self.sizes.top(), vm, &self.memory) {
            log::warn!("{}", error_chain(&error));
        }
        self.sizes.set_usable(self.hotplug.usable());
        self.awaited_mib.take()
    }
}
