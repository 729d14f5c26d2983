//! The threads that devices work on.
//!
//! A [`DeviceThread`] waits for the doorbells of its devices' queues and for their host
//! descriptors, and calls the device. Devices that may block on the host's disks have a thread of
//! their own; the others share one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags};
use rustix::io::Errno;

use super::device::VirtioDevice;
use super::epoll::Source;
use super::errand::Hold;
use super::slot::Slot;
use crate::memory::CurrentMemory;

/// Devices that take turns on one thread.
pub struct DeviceThread {
    epoll: Arc<OwnedFd>,
    slots: Vec<Arc<Slot>>,
    hold: Arc<Hold>,
}

impl DeviceThread {
    /// A thread without devices, which does not run yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            slots: Vec::new(),
            hold: Arc::default(),
        })
    }

    /// A thread that cannot wait.
    #[cfg(test)]
    pub fn broken() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(std::fs::File::open("/dev/null")?.into()),
            slots: Vec::new(),
            hold: Arc::default(),
        })
    }

    /// Adds a device.
    pub fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        memory: CurrentMemory,
    ) -> io::Result<Arc<Slot>> {
        let number = self.slots.len() as u16;
        let (epoll, hold) = (Arc::clone(&self.epoll), Arc::clone(&self.hold));
        let slot = Arc::new(Slot::new(device, memory, epoll, number, hold)?);
        self.slots.push(Arc::clone(&slot));
        Ok(slot)
    }

    /// A descriptor that is readable while there are events to handle, for a loop that waits for
    /// other descriptors too.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Waits for events and handles them until waiting fails, and returns that error.
    pub fn run(&self) -> io::Error {
        self.slots.iter().for_each(|slot| slot.set_own_thread());
        loop {
            if let Err(error) = self.handle_events(true) {
                return error;
            }
        }
    }

    /// Handles the events that are pending.
    pub fn handle_pending(&self) -> io::Result<()> {
        self.handle_events(false)
    }

    /// Saves or restores the devices for another thread that asks for it, also while that one holds
    /// this.
    fn stand_by(&self) {
        let run_errands = || self.slots.iter().for_each(|slot| slot.run_errands());
        run_errands();
        self.hold.wait(run_errands);
    }

    fn handle_events(&self, wait: bool) -> io::Result<()> {
        let mut buffer = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 32];
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let (events, _) = match epoll::wait(&self.epoll, &mut buffer, (!wait).then_some(&now)) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        for event in events {
            self.stand_by();
            let (slot, source) = Source::decode(event.data.u64());
            if let Some(slot) = self.slots.get(slot) {
                slot.handle(source, event.flags);
            }
        }
        Ok(())
    }
}
