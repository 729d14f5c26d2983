//! The trait that every virtio device implements, and what a transport hands to a device.
//!
//! A transport may call `info` and `read_config` at any time. When the driver is ready it calls
//! `start`, then `process_queue` and `process_host_event` for each notification, one call at a
//! time, and at last `reset`, after which `start` may follow again. An error from any of these
//! means that the driver violated the protocol: the transport sets DEVICE_NEEDS_RESET and does not
//! call the device again until the driver resets it.
//!
//! A device whose driver lives on in a machine that is restored gets `start` and then `restore`.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::budget::Budget;
use super::chain::{self, Chain, ChainError};
use crate::memory::GuestMemory;

/// The properties of a device that never change.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// The device type, section 5 of the specification.
    pub id: u32,
    /// The largest size of each queue.
    pub queue_sizes: &'static [u16],
    /// The offered features without those of the rings, which the transport adds.
    pub features: u64,
}

/// A device cannot serve its driver until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A request violates the rules of the rings.
    #[error("{device}: queue {queue}")]
    Queue {
        device: &'static str,
        queue: usize,
        #[source]
        source: ChainError,
    },
    /// A request violates the protocol of this device.
    #[error("{device}: {reason}")]
    Protocol {
        device: &'static str,
        reason: &'static str,
    },
    /// A saved state cannot be taken over.
    #[error("{device}: {reason}")]
    State {
        device: &'static str,
        reason: String,
    },
    /// The host refused something that the device cannot do without.
    #[error("{device}: {action}")]
    Host {
        device: &'static str,
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A device cannot be saved now: why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Busy(pub Cow<'static, str>);

impl DeviceError {
    pub fn queue(device: &'static str, queue: usize) -> impl FnOnce(ChainError) -> Self {
        move |source| Self::Queue {
            device,
            queue,
            source,
        }
    }

    pub fn host(device: &'static str, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host {
            device,
            action,
            source,
        }
    }
}

/// The directions in which a host descriptor is ready, or in which a device waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Data to read, a connection to accept, or the end of the stream.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
    /// Closed in both directions, or broken. Always reported, never requested.
    pub hung_up: bool,
}

impl Readiness {
    pub const READABLE: Self = Self {
        readable: true,
        writable: false,
        hung_up: false,
    };
    pub const BOTH: Self = Self {
        readable: true,
        writable: true,
        hung_up: false,
    };
}

/// The host descriptors that a device waits for. Closing a descriptor ends its watch.
pub trait HostFds {
    /// Starts a watch; `token` comes back in [`VirtioDevice::process_host_event`].
    ///
    /// Watches are edge-triggered (EPOLLET): after an event the device reads or writes until the
    /// descriptor would block, or remembers that it has not.
    fn watch(&mut self, fd: BorrowedFd<'_>, token: u32, wanted: Readiness) -> io::Result<()>;

    /// Ends a watch; ending one that does not exist is no error.
    fn unwatch(&mut self, fd: BorrowedFd<'_>);
}

/// What a device can access while it is called.
pub struct DeviceIo<'a> {
    pub memory: &'a GuestMemory,
    pub queues: Vec<&'a mut Queue>,
    pub host: &'a mut dyn HostFds,
    pub budget: Budget,
}

impl<'a> DeviceIo<'a> {
    /// Takes the next request of a queue. If there is none, asks the driver to notify of the next.
    /// There is none, either, for a device that has taken enough in this call: it is called again.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain<'a>>, ChainError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(None);
        };
        if self.budget.is_spent(index) {
            if queue.enable_notification(self.memory)? {
                self.budget.postpone(index);
            }
            return Ok(None);
        }
        let request = match chain::pop(queue, self.memory)? {
            // The driver did not notify of a request that it added in between.
            None if queue.enable_notification(self.memory)? => chain::pop(queue, self.memory)?,
            request => request,
        };
        if let Some(chain) = &request {
            let bytes = chain.readable.len().saturating_add(chain.writable.len());
            self.budget.count_request(index, bytes);
        }
        Ok(request)
    }

    /// The request that was taken last as virtio-queue's type, for libraries that expect it. It was
    /// valid when it was taken; the guest may change it since, so the library must check it again.
    pub fn unparsed(
        &mut self,
        index: usize,
    ) -> Result<Option<DescriptorChain<&'a GuestMemory>>, ChainError> {
        self.unpop(index);
        match self.queues.get_mut(index) {
            Some(queue) => Ok(queue.iter(self.memory)?.next()),
            None => Ok(None),
        }
    }

    /// A request that was taken earlier and has not been pushed yet, by its head. `None` if there
    /// is no such queue any more.
    pub fn reopen(&self, index: usize, head: u16) -> Result<Option<Chain<'a>>, ChainError> {
        match self.queues.get(index).filter(|queue| queue.ready()) {
            Some(queue) => chain::reopen(queue, self.memory, head).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the request that was taken last back to the front of its queue.
    pub fn unpop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
    }

    /// Returns a request to the driver with `written` bytes of response.
    pub fn push(&mut self, index: usize, head: u16, written: u32) -> Result<(), ChainError> {
        match self.queues.get_mut(index) {
            Some(queue) => chain::push(queue, self.memory, head, written),
            None => Ok(()),
        }
    }

    /// Takes every request of a queue, calls `handle`, which returns the length of the response,
    /// and returns the request.
    pub fn drain(
        &mut self,
        index: usize,
        mut handle: impl FnMut(Chain<'a>) -> Result<u32, ChainError>,
    ) -> Result<(), ChainError> {
        while let Some(chain) = self.pop(index)? {
            let head = chain.head;
            let written = handle(chain)?;
            self.push(index, head, written)?;
        }
        Ok(())
    }
}

pub trait VirtioDevice: Send {
    fn info(&self) -> DeviceInfo;

    /// The index of a queue whose requests are mostly executed at once, and whose driver looks for
    /// the answers right after the notification. A transport in which the vCPU can wait lets it
    /// wait for them, which spares the interrupt and the guest's way to sleep and back.
    fn awaited_queue(&self) -> Option<usize> {
        None
    }

    /// The driver reads the configuration space. `data` holds zeroes, which the driver reads past
    /// the end; see [`read_config_space`].
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    /// The driver writes to the configuration space.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready and has accepted `features` of those that the device offers.
    fn start(&mut self, _features: u64, _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver notifies the device that a queue has new requests or buffers.
    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError>;

    /// A host descriptor that the device watches is ready.
    fn process_host_event(
        &mut self,
        _token: u32,
        _ready: Readiness,
        _io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Returns to the state before `start` and ends all watches.
    fn reset(&mut self, _host: &mut dyn HostFds) {}

    /// What of a started device cannot be derived from its features and queues, as bytes that only
    /// [`Self::restore`] reads. The guest does not run; the device may finish requests, and goes on
    /// afterwards if the guest does. What guest memory holds then belongs to the state.
    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        Ok(Vec::new())
    }

    /// Takes over a saved state, which may be damaged, right after `start`.
    fn restore(&mut self, _state: &[u8], _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Copies the bytes at `offset` of a configuration space to `data`.
pub fn read_config_space(space: &[u8], offset: usize, data: &mut [u8]) {
    let rest = space.get(offset..).unwrap_or_default();
    let bytes = rest.len().min(data.len());
    data[..bytes].copy_from_slice(&rest[..bytes]);
}
