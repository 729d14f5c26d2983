//! A slot: a device with its doorbells and its interrupt, shared by the transport, which configures
//! it, and the thread that the device works on.
//!
//! Lock order: a transport's registers, then [`Slot::running`]. A device is called with its
//! `running` lock held and no other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, EventFlags};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{DeviceError, DeviceIo, VirtioDevice};
use super::epoll::{Source, Watches, readiness};
use super::spec::{mmio, status};
use crate::fds::borrow_eventfd;
use crate::logging::{RateLimited, error_chain};
use crate::memory::CurrentMemory;

pub struct Slot {
    memory: CurrentMemory,
    running: Mutex<Running>,
    doorbells: Vec<EventFd>,
    interrupt: Interrupt,
    watches: Watches,
    warnings: RateLimited,
}

struct Running {
    device: Box<dyn VirtioDevice>,
    /// Empty while the driver is not ready.
    queues: Vec<Queue>,
}

impl Slot {
    /// A slot with this device, whose events come from `epoll` with the number `number`.
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: CurrentMemory,
        epoll: Arc<OwnedFd>,
        number: u16,
    ) -> io::Result<Self> {
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
            interrupt: Interrupt::new(new_eventfd()?),
            watches: Watches {
                epoll,
                slot: number,
            },
            warnings: RateLimited::default(),
        })
    }

    /// The eventfds by which the driver notifies the device, one per queue, in order.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
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

    /// Resets the device to its state before [`Self::start`].
    pub fn reset(&self) {
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
                self.lock_and_call(|device, io| device.process_queue(queue, io));
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
        };
        if let Err(error) = work(running.device.as_mut(), &mut io) {
            self.warnings.warn(|| error_chain(&error));
            self.interrupt.set_needs_reset();
            return;
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
