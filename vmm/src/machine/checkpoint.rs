//! Checkpoints: machines as they were in the middle of their work.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

#[cfg(doc)]
use rvm_protocol::vmm::Request;

use super::Machine;
use super::saved::{MachineState, SavedError};
use crate::kvm;
use crate::memory::image;
use crate::memory::picture::Picture;
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

/// A checkpoint of a machine that has gone on.
pub struct Unfinished {
    picture: Picture,
    /// What belongs to the memory, and where it is written to.
    saved: MachineState,
    state: File,
}

impl Unfinished {
    /// Readable when the memory is written, or cannot be.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.picture.fd()
    }

    /// How long that may still take; None if there is no limit any more.
    pub fn time_left(&self) -> Option<Duration> {
        self.picture.time_left()
    }

    /// Gives up what takes too long.
    pub fn give_up(&mut self) {
        self.picture.give_up();
    }

    /// Writes the state, which names the blocks of the memory.
    fn finish(mut self) -> Result<(), SavedError> {
        self.saved.blocks = self.picture.finish()?;
        self.saved.write(self.state)
    }
}

/// The memory of a machine that is saved.
enum Memory {
    /// In its file, with its blocks.
    Written(Vec<u64>),
    /// On its way there.
    Pictured(Picture),
}

impl Machine {
    /// Writes the machine to a checkpoint. If it is to `go_on`, its vCPUs stand still until there
    /// is a picture of its memory: what is left to be done then is [`Self::unfinished`]. Else they
    /// stand still until all is written, and afterwards, if all went well. `has_swap` is
    /// [`Request::Save`]'s.
    pub fn save(&mut self, files: Files, go_on: bool, has_swap: bool) -> Result<(), SavedError> {
        if self.unfinished.is_some() {
            let other = "the machine is still being written to another checkpoint";
            return Err(SavedError::Busy(other));
        }
        self.vcpus.pause();
        self.removed.set(Some(files.removed));
        let saved = self.save_paused((files.state, files.memory, files.kvm), go_on, has_swap);
        self.removed.set(None);
        if go_on || saved.is_err() {
            self.vcpus.resume();
        }
        self.unfinished = saved?;
        Ok(())
    }

    fn save_paused(
        &self,
        (state, memory, kvm): (File, File, OwnedFd),
        go_on: bool,
        has_swap: bool,
    ) -> Result<Option<Unfinished>, SavedError> {
        fault_point!("vmm.save").map_err(SavedError::File)?;
        let msrs = kvm::saveable_msrs(kvm)?;
        // What the guest asked for last.
        let handled = self.main_devices.handle_pending();
        handled.map_err(SavedError::File)?;
        let vcpus = self.vcpus.save(&msrs).ok_or(SavedError::Vcpus)??;
        let vm = self.vm.save(self.vcpus.max())?;
        let bus = self.vcpus.state().bus();
        let (slots, memory) = bus.save(|slots| {
            let memory = self.save_memory(&memory, go_on, has_swap);
            memory.map(|memory| (slots, memory))
        })??;
        fault_point!("vmm.saved").map_err(SavedError::File)?;
        let mut saved = MachineState {
            shape: self.shape.clone(),
            cards: self.nets.cards().to_vec(),
            vm,
            vcpus,
            slots,
            grown: self.memory.grown(),
            blocks: Vec::new(),
        };
        match memory {
            Memory::Written(blocks) => {
                saved.blocks = blocks;
                saved.write(state)?;
                Ok(None)
            }
            Memory::Pictured(picture) => Ok(Some(Unfinished {
                picture,
                saved,
                state,
            })),
        }
    }

    /// Takes a picture of the memory for a machine that is to `go_on`, or writes the memory.
    fn save_memory(
        &self,
        file: &File,
        go_on: bool,
        has_swap: bool,
    ) -> Result<Memory, image::ImageError> {
        let memory = self.memory.current().get();
        let memory = self.disks.remove_from(memory);
        let is_elsewhere = |block: u64| has_swap || self.mapped.binary_search(&block).is_ok();
        if go_on {
            match Picture::take(&memory, file, is_elsewhere) {
                Ok(picture) => return Ok(Memory::Pictured(picture)),
                Err(error) => log::warn!(
                    "the machine stands still while its memory is written: cannot copy the \
                     process: {error}"
                ),
            }
        }
        let mut blocks = Vec::new();
        image::write(&memory, file, is_elsewhere, |block| blocks.push(block))?;
        Ok(Memory::Written(blocks))
    }

    /// Finishes the checkpoint whose [`Unfinished::fd`] is readable.
    pub fn finish_checkpoint(&mut self) -> Result<(), SavedError> {
        self.unfinished.take().map_or(Ok(()), Unfinished::finish)
    }

    /// Restores the device of the shared files, if it was to wait for files.
    pub fn restore_files(&self) -> Result<(), SavedError> {
        let restored = self.vcpus.state().bus().restore_files();
        self.removed.set(None);
        Ok(restored?)
    }

    /// Has the streams reset that came from a checkpoint and that no host program has claimed.
    pub fn drop_streams(&self) -> io::Result<()> {
        self.drop_streams
            .as_ref()
            .map_or(Ok(()), |event| event.write(1))
    }
}
