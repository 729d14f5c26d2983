//! What a slot's own thread does for another thread: it saves the device, and restores one whose
//! restore was postponed, since what it needs of the host was to come later.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::super::device::Busy;
use super::super::errand::Errand;
use super::super::spec::status;
use super::super::state::{SlotState, StateError};
use super::Slot;

/// How long a device may take to be saved or restored: virtio-fs finds the path of every file that
/// the guest knows, or opens what is there, and writes what deleted files hold.
const SAVING_PATIENCE: Duration = Duration::from_secs(60);

/// Whether a device is to get its saved state later than the others.
#[derive(Default)]
pub(super) enum Postponed {
    #[default]
    No,
    Yes,
    /// The features and the state that it is to get.
    State(u64, SlotState),
}

impl Slot {
    /// Saves or restores the device if that was asked for.
    pub(in crate::virtio) fn run_errands(&self) {
        self.saving.run(|| self.save_here());
        self.restoring.run(|| self.restore_postponed_here());
    }

    /// The state of a device that was started, made on its own thread. Fails if it cannot be saved
    /// now, or waits for its driver to reset it.
    pub(in crate::virtio) fn save(&self) -> Result<SlotState, StateError> {
        self.on_own_thread(&self.saving, || self.save_here())
    }

    /// Has the device's thread do what its errand is, or does it where there is no other thread.
    fn on_own_thread<T>(
        &self,
        errand: &Errand<Result<T, StateError>>,
        here: impl FnOnce() -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        match self.has_own_thread.load(Ordering::Acquire) && !self.doorbells.is_empty() {
            true => {
                let done = errand.ask(|| self.ring(0), SAVING_PATIENCE);
                done.unwrap_or(Err(StateError::Thread))
            }
            false => here(),
        }
    }

    fn save_here(&self) -> Result<SlotState, StateError> {
        if let Postponed::State(..) = *self.postponed() {
            return Err(Busy("it waits for its files".into()).into());
        }
        let mut running = self.lock();
        if self.interrupt.status() & status::NEEDS_RESET != 0 {
            return Err(StateError::Device);
        }
        let mut saved = Ok(Vec::new());
        self.call(&mut running, |device, io| {
            saved = device.save(io);
            Ok(())
        });
        let device = saved?;
        let cause = self.interrupt.cause();
        Ok(SlotState::new(&running.queues, cause, device))
    }

    /// Has [`Self::restore`] leave the device as it is until [`Self::restore_postponed`].
    pub fn postpone_restore(&self) {
        *self.postponed() = Postponed::Yes;
    }

    /// Restores the device if that was postponed, on its own thread. Its driver may have notified
    /// it meanwhile.
    pub fn restore_postponed(&self) -> Result<(), StateError> {
        self.on_own_thread(&self.restoring, || self.restore_postponed_here())
    }

    fn restore_postponed_here(&self) -> Result<(), StateError> {
        let postponed = std::mem::take(&mut *self.postponed());
        match postponed {
            Postponed::State(features, state) => self.restore(features, &state),
            Postponed::No | Postponed::Yes => Ok(()),
        }
    }

    pub(super) fn postponed(&self) -> MutexGuard<'_, Postponed> {
        self.postponed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use virtio_queue::{Queue, QueueT as _};

    use super::super::super::device::{DeviceError, DeviceInfo, DeviceIo, VirtioDevice};
    use super::super::super::spec::device_id;
    use super::super::super::thread::DeviceThread;
    use super::*;
    use crate::memory::CurrentMemory;

    /// Counts how often it was started and restored.
    #[derive(Clone, Default)]
    struct Counting(Arc<[AtomicUsize; 2]>);

    impl Counting {
        fn counts(&self) -> [usize; 2] {
            [0, 1].map(|index| self.0[index].load(Ordering::Acquire))
        }

        fn count(&self, index: usize) -> Result<(), DeviceError> {
            self.0[index].fetch_add(1, Ordering::AcqRel);
            Ok(())
        }
    }

    impl VirtioDevice for Counting {
        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                id: device_id::FS,
                queue_sizes: &[16],
                features: 0,
            }
        }

        fn start(&mut self, _: u64, _: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
            self.count(0)
        }

        fn process_queue(&mut self, _: usize, _: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
            Ok(())
        }

        fn save(&mut self, _: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
            Ok(vec![7])
        }

        fn restore(&mut self, state: &[u8], _: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
            assert_eq!(state, [7]);
            self.count(1)
        }
    }

    fn slot() -> (DeviceThread, Arc<Slot>, Counting) {
        let mut thread = DeviceThread::new().unwrap();
        let memory = CurrentMemory::new(crate::memory::map(2).unwrap());
        let device = Counting::default();
        let slot = thread.add(Box::new(device.clone()), memory).unwrap();
        (thread, slot, device)
    }

    fn saved() -> SlotState {
        let (_thread, slot, _) = slot();
        slot.start(0, vec![Queue::new(16).unwrap()]);
        slot.save().unwrap()
    }

    #[test]
    fn a_device_whose_restore_is_postponed_is_as_before_and_cannot_be_saved_until_then() {
        let (thread, slot, device) = slot();
        slot.postpone_restore();
        slot.restore(0, &saved()).unwrap();
        assert_eq!(device.counts(), [0, 0]);
        assert!(matches!(slot.save(), Err(StateError::Busy(_))));
        std::thread::spawn(move || thread.run());
        while !slot.has_own_thread.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(slot.notify(0).is_none(), "its driver goes on meanwhile");
        for _ in 0..2 {
            slot.restore_postponed().unwrap();
            assert_eq!(device.counts(), [1, 1]);
        }
        assert!(slot.save().is_ok());
    }

    #[test]
    fn a_driver_that_resets_a_device_meanwhile_gets_no_state_of_before() {
        let (_thread, slot, device) = slot();
        slot.postpone_restore();
        slot.restore(0, &saved()).unwrap();
        slot.reset();
        slot.restore_postponed().unwrap();
        assert_eq!(device.counts(), [0, 0]);
    }
}
