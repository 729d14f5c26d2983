//! The threads that devices work on.
//!
//! A [`DeviceThread`] waits for the bells of its devices' queues and for their host descriptors,
//! and calls the device. Devices that may block on the host's disks have one to themselves; the
//! others share.
//!
//! Lock order: a transport's registers, then [`Slot::running`]. A device is called with its
//! `running` lock held and nothing else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{DeviceError, DeviceIo, HostFds, Readiness, VirtioDevice};
use super::spec::{mmio, status};
use crate::memory::CurrentMemory;
use crate::report::RateLimited;

/// A device in its place on a thread, shared with the transport that configures it.
pub struct Slot {
    memory: CurrentMemory,
    /// The device and, while it works, its queues.
    running: Mutex<Running>,
    /// One bell a queue.
    bells: Vec<EventFd>,
    /// How the guest is interrupted.
    pub interrupt: Interrupt,
    watches: Watches,
    log: RateLimited,
}

struct Running {
    device: Box<dyn VirtioDevice>,
    /// Empty while the driver is not ready.
    queues: Vec<Queue>,
}

/// The guest's interrupt line for one device, and the reason register that goes with it.
pub struct Interrupt {
    line: EventFd,
    /// InterruptStatus
    reason: AtomicU32,
    /// Status bits that the device set itself.
    status: AtomicU32,
}

impl Interrupt {
    /// Takes the descriptor that raises the line.
    pub fn new(line: EventFd) -> Self {
        Self {
            line,
            reason: AtomicU32::new(0),
            status: AtomicU32::new(0),
        }
    }

    /// The descriptor that raises the line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus
    pub fn reason(&self) -> u32 {
        self.reason.load(Ordering::Acquire)
    }

    /// InterruptACK
    pub fn acknowledge(&self, reason: u32) {
        self.reason.fetch_and(!reason, Ordering::AcqRel);
    }

    /// Status bits that the device set itself.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.raise(mmio::INTERRUPT_CONFIG);
    }

    fn raise(&self, reason: u32) {
        self.reason.fetch_or(reason, Ordering::AcqRel);
        // An eventfd refuses only when its counter is full, and then the line is up already.
        let _ = self.line.write(1);
    }

    fn needs_reset(&self) {
        self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        self.config_changed();
    }

    fn clear(&self) {
        self.reason.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

impl Slot {
    /// One bell a queue, in order.
    pub fn bells(&self) -> &[EventFd] {
        &self.bells
    }

    /// Calls `look` with the device.
    pub fn device<T>(&self, look: impl FnOnce(&mut dyn VirtioDevice) -> T) -> T {
        look(self.lock().device.as_mut())
    }

    /// The driver is ready: the device starts with these queues.
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

    /// The driver wants the device as it was before `start`.
    pub fn reset(&self) {
        let mut running = self.lock();
        running.queues.clear();
        running.device.reset(&mut &self.watches);
        self.interrupt.clear();
    }

    /// Puts another device in its place. The old one was reset.
    pub fn replace(&self, device: Box<dyn VirtioDevice>) {
        self.lock().device = device;
    }

    /// Calls the device outside of an event from the guest or a host descriptor.
    pub fn poke(
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
            self.log.warn(|| crate::report::chain(&error));
            self.interrupt.needs_reset();
            return;
        }
        let notify = running.queues.iter_mut().zip(used).any(|(queue, before)| {
            // A ring that cannot be read wants no interrupt; the next request will say so.
            queue.next_used() != before
                && queue.needs_notification(memory.as_ref()).unwrap_or(false)
        });
        if notify {
            self.interrupt.raise(mmio::INTERRUPT_QUEUE);
        }
    }

    fn handle(&self, source: Source, flags: EventFlags) {
        match source {
            Source::Bell(queue) => {
                // Nobody else reads it, and an empty one only means that there is nothing to do.
                let _ = self.bells.get(queue).map(EventFd::read);
                self.poke(|device, io| device.process_queue(queue, io));
            }
            Source::Host(token) => {
                let ready = readiness(flags);
                self.poke(|device, io| device.process_host_event(token, ready, io));
            }
        }
    }
}

/// Where an event comes from, as it is kept in epoll's 64 bits: the slot in the upper 16, then 16
/// for the kind, then the queue or the device's own token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Bell(usize),
    Host(u32),
}

const KIND_BELL: u64 = 1 << 32;

impl Source {
    fn encode(self, slot: u16) -> EventData {
        let low = match self {
            Self::Bell(queue) => KIND_BELL | queue as u64,
            Self::Host(token) => u64::from(token),
        };
        EventData::new_u64(u64::from(slot) << 48 | low)
    }

    fn decode(data: u64) -> (usize, Self) {
        let low = data as u32;
        let source = if data & KIND_BELL != 0 {
            Self::Bell(low as usize)
        } else {
            Self::Host(low)
        };
        ((data >> 48) as usize, source)
    }
}

pub(super) fn readiness(flags: EventFlags) -> Readiness {
    Readiness {
        readable: flags.contains(EventFlags::IN),
        writable: flags.contains(EventFlags::OUT),
        hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
    }
}

/// The host descriptors of one device, on its thread's epoll.
struct Watches {
    epoll: Arc<OwnedFd>,
    slot: u16,
}

impl HostFds for &Watches {
    fn watch(&mut self, fd: BorrowedFd<'_>, token: u32, wanted: Readiness) -> io::Result<()> {
        watch(
            &self.epoll,
            fd,
            Source::Host(token).encode(self.slot),
            wanted,
        )
    }

    fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(self.epoll.as_fd(), fd);
    }
}

/// Adds a descriptor to an epoll; see [`HostFds::watch`].
pub(super) fn watch(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    data: EventData,
    wanted: Readiness,
) -> io::Result<()> {
    let mut flags = EventFlags::ET;
    flags.set(EventFlags::IN, wanted.readable);
    flags.set(EventFlags::OUT, wanted.writable);
    Ok(epoll::add(epoll, fd, data, flags)?)
}

/// Devices that take turns on one thread.
pub struct DeviceThread {
    name: String,
    epoll: Arc<OwnedFd>,
    slots: Vec<Arc<Slot>>,
}

impl DeviceThread {
    /// A thread that does not run yet. Names are at most 15 bytes long, see prctl(2).
    pub fn new(name: &str) -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        Ok(Self {
            name: name.to_owned(),
            epoll,
            slots: Vec::new(),
        })
    }

    /// What the thread is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives a device its place.
    pub fn add(
        &mut self,
        device: Box<dyn VirtioDevice>,
        memory: CurrentMemory,
    ) -> io::Result<Arc<Slot>> {
        let slot = self.slots.len() as u16;
        let mut bells = Vec::new();
        for queue in 0..device.info().queue_sizes.len() {
            let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            let data = Source::Bell(queue).encode(slot);
            epoll::add(&self.epoll, crate::fd::borrow(&bell), data, EventFlags::IN)?;
            bells.push(bell);
        }
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let slot = Arc::new(Slot {
            memory,
            running: Mutex::new(Running {
                device,
                queues: Vec::new(),
            }),
            bells,
            interrupt: Interrupt::new(line),
            watches: Watches {
                epoll: Arc::clone(&self.epoll),
                slot,
            },
            log: RateLimited::default(),
        });
        self.slots.push(Arc::clone(&slot));
        Ok(slot)
    }

    /// Becomes readable when the thread has work, for a loop that waits for more than this.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Does the work there is, and waits for some first if `wait` is set.
    pub fn work(&self, wait: bool) -> io::Result<()> {
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
            let (slot, source) = Source::decode(event.data.u64());
            if let Some(slot) = self.slots.get(slot) {
                slot.handle(source, event.flags);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_source_survives_epoll(slot: u16, queue in 0..64usize, token: u32) {
            for source in [Source::Bell(queue), Source::Host(token)] {
                prop_assert_eq!(
                    Source::decode(source.encode(slot).u64()),
                    (usize::from(slot), source)
                );
            }
        }
    }
}
