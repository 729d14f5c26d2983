//! Checkpoints: machines as they were in the middle of their work.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

#[cfg(doc)]
use rvm_protocol::vmm::Request;

use super::saved::{MachineState, SavedError};
use super::{Machine, Shape};
use crate::kvm;
use crate::memory::image;
use rvm_sys::fault_point;

/// What a checkpoint is written to.
pub struct Files {
    pub state: File,
    pub memory: File,
    /// What files hold that a program has open and that have no name any more.
    pub removed: File,
    /// KVM's device, which knows the model-specific registers.
    pub kvm: OwnedFd,
}

impl Machine {
    /// Writes the machine to a checkpoint. Its vCPUs stand still meanwhile; if it is not to `go_on`
    /// and all went well, they do so afterwards. `has_swap` is [`Request::Save`]'s.
    pub fn save(&self, files: Files, go_on: bool, has_swap: bool) -> Result<(), SavedError> {
        if self.memory.has_grown() {
            let grown = "the machine has been given more memory while it ran";
            return Err(SavedError::Busy(grown));
        }
        self.vcpus.pause();
        self.removed.set(Some(files.removed));
        let saved = self.save_paused(files.state, files.memory, files.kvm, has_swap);
        self.removed.set(None);
        if go_on || saved.is_err() {
            self.vcpus.resume();
        }
        saved
    }

    fn save_paused(
        &self,
        state: File,
        mut memory: File,
        kvm: OwnedFd,
        has_swap: bool,
    ) -> Result<(), SavedError> {
        fault_point!("vmm.save").map_err(SavedError::File)?;
        let msrs = kvm::saveable_msrs(kvm)?;
        // What the guest asked for last.
        let handled = self.main_devices.handle_pending();
        handled.map_err(SavedError::File)?;
        let vcpus = self.vcpus.save(&msrs).ok_or(SavedError::Vcpus)??;
        let vm = self.vm.save(self.vcpus.max())?;
        let is_elsewhere = |block: u64| has_swap || self.mapped.binary_search(&block).is_ok();
        let bus = self.vcpus.state().bus();
        let saved = bus.save(|slots| {
            Ok::<_, SavedError>(MachineState {
                shape: self.shape(),
                cards: self.nets.cards().to_vec(),
                vm,
                vcpus,
                slots,
                blocks: image::write(&self.memory.current(), &mut memory, is_elsewhere)?,
            })
        })??;
        fault_point!("vmm.saved").map_err(SavedError::File)?;
        saved.write(state)
    }

    /// What a machine needs that is to go on from this one.
    fn shape(&self) -> Shape {
        self.shape.clone().with_vcpus(self.vcpus.count())
    }

    /// Has the streams reset that came from a checkpoint and that no host program has claimed.
    pub fn drop_streams(&self) -> io::Result<()> {
        self.drop_streams
            .as_ref()
            .map_or(Ok(()), |event| event.write(1))
    }
}
