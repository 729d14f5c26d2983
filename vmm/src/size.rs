//! The size of a running machine's memory: what the host wants, and how far the guest has come.
//!
//! Memory beyond that of the start is the memory device's, which comes when it is first needed.
//! What the guest is to have less than at the start goes into the balloon.

use std::sync::Arc;

use rvm_protocol::MEMORY_SLOT;

use crate::bus::Bus;
use crate::hot_memory::{HotMemory, HotMemoryError};
use crate::kvm::Vm;
use crate::machine::{MachineError, Place, connect};
use crate::memory::CurrentMemory;
use crate::virtio::balloon;
use crate::virtio::mem::spec::BLOCK;
use crate::virtio::mem::{Mem, Sizes};
use crate::virtio::thread::Slot;

/// The memory's size cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum SizeError {
    /// The machine was made for less.
    #[error("{wanted_mib} MiB of memory; the machine was started with room for {max_mib} MiB")]
    TooMuch {
        /// How much there was to be.
        wanted_mib: u64,
        /// How much there can be.
        max_mib: u64,
    },
    /// The memory itself.
    #[error(transparent)]
    Memory(#[from] HotMemoryError),
    /// The device.
    #[error(transparent)]
    Device(#[from] MachineError),
}

/// A machine's memory.
pub struct MemorySize {
    boot_mib: u64,
    memory: CurrentMemory,
    hot: HotMemory,
    balloon: (balloon::Target, Arc<Slot>),
    sizes: Sizes,
    /// The memory device's place, and the device once it is there.
    place: Place,
    device: Option<Arc<Slot>>,
    /// What was asked for last, until the guest has it.
    awaited_mib: Option<u64>,
}

impl MemorySize {
    /// Of a machine that starts with `boot_mib` and may have what `hot` adds.
    pub fn new(
        boot_mib: u64,
        hot: HotMemory,
        memory: CurrentMemory,
        balloon: (balloon::Target, Arc<Slot>),
        place: Place,
    ) -> Self {
        Self {
            boot_mib,
            memory,
            hot,
            balloon,
            sizes: Sizes::default(),
            place,
            device: None,
            awaited_mib: None,
        }
    }

    /// Asks the guest to have so much.
    pub fn request(&mut self, mib: u64, vm: &Vm, bus: &Bus) -> Result<(), SizeError> {
        // The driver plugs whole blocks.
        let more = (mib.saturating_sub(self.boot_mib) << 20).next_multiple_of(BLOCK);
        let region = self.hot.region();
        let room = region.end - region.start;
        if more > room {
            return Err(SizeError::TooMuch {
                wanted_mib: mib,
                max_mib: self.boot_mib + (room >> 20),
            });
        }
        if more > 0 {
            self.plug_device(vm, bus)?;
        }
        // It shrinks later, when the driver cannot be about to plug something there.
        let usable = more.max(self.hot.usable());
        self.hot.set_usable(usable, vm, &self.memory)?;
        self.sizes.set_usable(self.hot.usable());
        self.sizes.request(more);
        if let Some(device) = &self.device {
            device.interrupt.config_changed();
        }
        let (target, slot) = &self.balloon;
        target.set_mib(self.boot_mib.saturating_sub(mib));
        slot.interrupt.config_changed();
        self.awaited_mib = Some(mib);
        Ok(())
    }

    fn plug_device(&mut self, vm: &Vm, bus: &Bus) -> Result<(), SizeError> {
        if self.device.is_some() {
            return Ok(());
        }
        let missing = || MachineError::Config("no slot for the memory device".to_owned());
        let mut transport = bus.device(MEMORY_SLOT).ok_or_else(missing)?;
        connect(vm, transport.slot(), self.place)?;
        let device = Mem::new(self.hot.region().clone(), self.sizes.clone());
        transport
            .replace(Box::new(device))
            .map_err(MachineError::from)?;
        self.device = Some(Arc::clone(transport.slot()));
        Ok(())
    }

    /// The size that was asked for, if the guest has come to have it since. What it gave back is not
    /// its own any more then.
    pub fn newly_reached(&mut self, vm: &Vm) -> Option<u64> {
        self.awaited_mib?;
        if self.sizes.plugged() != self.sizes.requested() || !self.balloon.0.is_reached() {
            return None;
        }
        if let Err(error) = self.hot.set_usable(self.sizes.top(), vm, &self.memory) {
            log::warn!("{}", crate::report::chain(&error));
        }
        self.sizes.set_usable(self.hot.usable());
        self.awaited_mib.take()
    }
}
