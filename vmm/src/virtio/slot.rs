//! A slot: a device with its doorbells and its interrupt, shared by the transport, which configures
//! it, and the thread that the device works on.
//!
//! Lock order: a transport's registers, then [`Slot::running`] or [`Slot::postponed`]. A device is
//! called with its `running` lock held and no other.

mod errands;
mod rounds;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, EventFlags};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Budget;
use super::device::{DeviceError, DeviceIo, VirtioDevice};
use super::epoll::{Source, Watches, readiness};
use super::errand::{Errand, Held, Hold};
use super::spec::{mmio, status};
use super::state::{SlotState, StateError};
use crate::fds::borrow_eventfd;
use crate::logging::{RateLimited, error_chain};
use crate::memory::CurrentMemory;
use errands::Postponed;
use rounds::{Round, Rounds};

pub struct Slot {
    memory: CurrentMemory,
    running: Mutex<Running>,
    doorbells: Vec<EventFd>,
    awaited_queue: Option<usize>,
    rounds: Rounds,
    interrupt: Interrupt,
    watches: Watches,
    warnings: RateLimited,
    has_own_thread: AtomicBool,
    saving: Errand<Result<SlotState, StateError>>,
    postponed: Mutex<Postponed>,
    restoring: Errand<Result<(), StateError>>,
    /// The thread's.
    hold: Arc<Hold>,
}

struct Running {
    device: Box<dyn VirtioDevice>,
    /// Empty while the driver is not ready.
    queues: Vec<Queue>,
}

impl Slot {
    /// A slot with this device, whose events come from `epoll` with the number `number`, on a
    /// thread that `hold` stops.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: CurrentMemory,
        epoll: Arc<OwnedFd>,
        number: u16,
        hold: Arc<Hold>,
    ) -> io::Result<Self> {
        let awaited_queue = device.awaited_queue();
        let mut doorbells = Vec::new();
        for queue in 0..device.info().queue_sizes.len() {
            let doorbell = new_eventfd()?;
            let data = Source::Doorbell(queue).encode(number);
            // Edge-triggered: each ring is an event, and nobody needs to read the doorbell.
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, borrow_eventfd(&doorbell), data, flags)?;
            doorbells.push(doorbell);
        }
        Ok(Self {
            memory,
            running: Mutex::new(Running {
                device,
                queues: Vec::new(),
            }),
            doorbells,
            awaited_queue,
            rounds: Rounds::default(),
            interrupt: Interrupt::new(new_eventfd()?),
            watches: Watches {
                epoll,
                slot: number,
            },
            warnings: RateLimited::default(),
            has_own_thread: AtomicBool::new(false),
            saving: Errand::default(),
            postponed: Mutex::default(),
            restoring: Errand::default(),
            hold,
        })
    }

    /// The eventfds by which KVM passes on the driver's notifications, by queue. Those of a queue
    /// that is missing here are for [`Self::notify`].
    pub fn doorbells(&self) -> impl Iterator<Item = (usize, &EventFd)> {
        let all = self.doorbells.iter().enumerate();
        all.filter(|(queue, _)| Some(*queue) != self.awaited_queue)
    }

    /// Notifies the device of requests. The result is to be waited for, without a lock.
    pub fn notify(&self, queue: usize) -> Option<Round<'_>> {
        let awaited = self.awaited_queue == Some(queue);
        let round = awaited.then(|| self.rounds.next());
        self.ring(queue);
        round
    }

    /// Has the device's thread process a queue after the events that came before.
    fn ring(&self, queue: usize) {
        if let Some(doorbell) = self.doorbells.get(queue) {
            // A write fails only when the counter is full, and then the thread wakes up anyway.
            let _ = doorbell.write(1);
        }
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Calls `inspect` with the device.
    pub fn with_device<T>(&self, inspect: impl FnOnce(&mut dyn VirtioDevice) -> T) -> T {
        inspect(self.lock().device.as_mut())
    }

    /// Starts the device with these queues: the driver is ready.
    pub fn start(&self, features: u64, queues: Vec<Queue>) {
        let mut running = self.lock();
        running.queues = queues;
        self.call(&mut running, |device, io| {
            if io
                .queues
                .iter()
                .any(|queue| queue.ready() && !queue.is_valid(io.memory))
            {
                return Err(DeviceError::Protocol {
                    device: "virtio",
                    reason: "a queue lies outside guest memory",
                });
            }
            device.start(features, io)
        });
    }

    /// Notes that another thread than that of the transport handles the slot's events.
    pub(super) fn set_own_thread(&self) {
        self.has_own_thread.store(true, Ordering::Release);
    }

    /// Keeps the slot's thread from handling events until the result is dropped; it still saves its
    /// devices. It may be in the middle of an event.
    pub fn hold(&self) -> Held<'_> {
        self.hold.hold()
    }

    /// Starts the device with a state that was saved. Fails if the device cannot go on from it.
    pub(super) fn restore(&self, features: u64, state: &SlotState) -> Result<(), StateError> {
        if let postponed @ Postponed::Yes = &mut *self.postponed() {
            *postponed = Postponed::State(features, state.clone());
            return Ok(());
        }
        self.start(features, state.queues()?);
        let mut restored = Ok(());
        self.lock_and_call(|device, io| {
            restored = device.restore(&state.device, io);
            Ok(())
        });
        if let Err(error) = restored {
            self.interrupt.set_needs_reset();
            return Err(StateError::Refused(error));
        }
        if self.interrupt.status() & status::NEEDS_RESET != 0 {
            return Err(StateError::Device);
        }
        // Whether the guest had received the interrupt is not known, nor whether the device had
        // heard of the notifications.
        if state.cause != 0 {
            self.interrupt.raise(state.cause);
        }
        (0..self.doorbells.len()).for_each(|queue| self.ring(queue));
        Ok(())
    }

    /// Resets the device to its state before [`Self::start`].
    pub fn reset(&self) {
        *self.postponed() = Postponed::No;
        let mut running = self.lock();
        running.queues.clear();
        running.device.reset(&mut &self.watches);
        self.interrupt.clear();
    }

    /// Replaces the device. The caller has reset the old one.
    pub fn replace(&self, device: Box<dyn VirtioDevice>) {
        self.lock().device = device;
    }

    /// Handles an event of the slot's epoll.
    pub(super) fn handle(&self, source: Source, flags: EventFlags) {
        match source {
            Source::Doorbell(queue) => {
                let is_awaited = self.awaited_queue == Some(queue);
                if is_awaited {
                    self.rounds.begin();
                }
                self.lock_and_call(|device, io| device.process_queue(queue, io));
                if is_awaited {
                    self.rounds.end();
                }
            }
            Source::Host(token) => {
                let ready = readiness(flags);
                self.lock_and_call(|device, io| device.process_host_event(token, ready, io));
            }
        }
    }

    fn lock_and_call(
        &self,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<(), DeviceError>,
    ) {
        let mut running = self.lock();
        self.call(&mut running, work);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // The release profile aborts on panic, so only tests can see a poisoned lock.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(
        &self,
        running: &mut Running,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<(), DeviceError>,
    ) {
        if running.queues.is_empty() || self.interrupt.status() & status::NEEDS_RESET != 0 {
            return;
        }
        let memory = self.memory.get();
        let used: Vec<u16> = running.queues.iter().map(QueueT::next_used).collect();
        let mut io = DeviceIo {
            memory: &memory,
            queues: running.queues.iter_mut().collect(),
            host: &mut &self.watches,
            budget: Budget::default(),
        };
        if let Err(error) = work(running.device.as_mut(), &mut io) {
            self.warnings.warn(|| error_chain(&error));
            self.interrupt.set_needs_reset();
            return;
        }
        for queue in io.budget.postponed() {
            self.ring(queue);
        }
        let notify = running.queues.iter_mut().zip(used).any(|(queue, before)| {
            // A ring that cannot be read gets no interrupt; the next request reports the error.
            queue.next_used() != before
                && queue.needs_notification(memory.as_ref()).unwrap_or(false)
        });
        if notify {
            self.interrupt.raise(mmio::INTERRUPT_QUEUE);
        }
    }
}

fn new_eventfd() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

/// The interrupt of a device, and the register that tells the driver its cause.
pub struct Interrupt {
    irqfd: EventFd,
    /// InterruptStatus
    cause: AtomicU32,
    /// Status bits that the device set itself.
    status: AtomicU32,
}

impl Interrupt {
    fn new(irqfd: EventFd) -> Self {
        Self {
            irqfd,
            cause: AtomicU32::new(0),
            status: AtomicU32::new(0),
        }
    }

    /// The eventfd that raises the interrupt line.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// InterruptStatus
    pub fn cause(&self) -> u32 {
        self.cause.load(Ordering::Acquire)
    }

    /// InterruptACK
    pub fn acknowledge(&self, cause: u32) {
        self.cause.fetch_and(!cause, Ordering::AcqRel);
    }

    /// InterruptStatus, acknowledged.
    pub fn take(&self) -> u32 {
        self.cause.swap(0, Ordering::AcqRel)
    }

    /// Status bits that the device set itself.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Notifies the driver that the configuration space changed.
    pub fn notify_config_change(&self) {
        self.raise(mmio::INTERRUPT_CONFIG);
    }

    fn raise(&self, cause: u32) {
        self.cause.fetch_or(cause, Ordering::AcqRel);
        // A write fails only when the eventfd's counter is full, and then the line is raised
        // already.
        let _ = self.irqfd.write(1);
    }

    fn set_needs_reset(&self) {
        self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        self.notify_config_change();
    }

    fn clear(&self) {
        self.cause.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{Busy, DeviceInfo};
    use super::super::spec::device_id;
    use super::super::thread::DeviceThread;
    use super::*;

    /// Has an awaited queue beside another.
    struct Awaited;

    impl VirtioDevice for Awaited {
        fn info(&self) -> DeviceInfo {
            DeviceInfo {
                id: device_id::FS,
                queue_sizes: &[16, 16],
                features: 0,
            }
        }

        fn awaited_queue(&self) -> Option<usize> {
            Some(1)
        }

        fn process_queue(&mut self, _: usize, _: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
            Ok(())
        }

        /// Tells the thread that calls.
        fn save(&mut self, _: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
            let id = format!("{:?}", std::thread::current().id());
            Err(Busy(id.into()))
        }
    }

    fn slot() -> (DeviceThread, Arc<Slot>) {
        let mut thread = DeviceThread::new().unwrap();
        let memory = CurrentMemory::new(crate::memory::map(2).unwrap());
        let slot = thread.add(Box::new(Awaited), memory).unwrap();
        (thread, slot)
    }

    #[test]
    fn only_the_awaited_queue_is_waited_for_and_its_doorbell_is_not_kvms() {
        let (_thread, slot) = slot();
        let kvms: Vec<usize> = slot.doorbells().map(|(queue, _)| queue).collect();
        assert_eq!(kvms, [0]);
        assert!(slot.notify(0).is_none());
        assert!(slot.notify(1).is_some());
        assert!(slot.notify(2).is_none(), "there is no such queue");
    }

    #[test]
    fn a_device_is_saved_on_its_own_thread() {
        let (thread, slot) = slot();
        slot.start(0, vec![Queue::new(16).unwrap(), Queue::new(16).unwrap()]);
        let saved_by = || match slot.save() {
            Err(StateError::Busy(Busy(id))) => id.into_owned(),
            _ => panic!("the device was not asked"),
        };
        let this = std::thread::current().id();
        assert_eq!(saved_by(), format!("{this:?}"), "nothing else runs it");
        let other = std::thread::spawn(move || thread.run());
        while !slot.has_own_thread.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert_eq!(saved_by(), format!("{:?}", other.thread().id()));
    }

    #[test]
    fn a_notifier_does_not_wait_for_ever() {
        let (_thread, slot) = slot();
        let round = slot.notify(1).unwrap();
        round.wait();
    }

    #[test]
    fn a_round_ends_when_its_queue_was_processed() {
        let (thread, slot) = slot();
        let round = slot.notify(1).unwrap();
        assert!(!round.has_ended());
        thread.handle_pending().unwrap();
        assert!(round.has_ended());
        round.wait();
    }

    #[test]
    fn a_round_that_has_begun_is_not_that_of_a_later_request() {
        let (thread, slot) = slot();
        slot.rounds.begin();
        let round = slot.notify(1).unwrap();
        slot.rounds.end();
        assert!(!round.has_ended());
        thread.handle_pending().unwrap();
        assert!(round.has_ended());
    }
}
