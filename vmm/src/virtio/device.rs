//! What a virtio device is to the transports that carry it.
//!
//! Life of a device: `info` and `config` are asked at any time. When the driver is ready the
//! transport calls `start`, from then on `process_queue` and `process_host_event` as the driver and
//! the host make themselves heard, one call at a time, and at last `reset`, after which `start` may
//! follow again. An error from any of these means that the driver broke the rules: the transport
//! marks the device as needing a reset and calls it no more until that comes.

use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::chain::{self, Chain, ChainError};
use crate::memory::GuestMemory;

/// What a device is, for as long as it exists.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// The device type, section 5 of the specification.
    pub id: u32,
    /// The largest size of each queue.
    pub queue_sizes: &'static [u16],
    /// The features it offers beside those of the rings, which the transport adds.
    pub features: u64,
}

/// Why a device can no longer serve its driver.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's request breaks the rules of the rings.
    #[error("{device}: queue {queue}")]
    Queue {
        /// The device's name.
        device: &'static str,
        /// The queue's number.
        queue: usize,
        /// What is wrong.
        #[source]
        source: ChainError,
    },
    /// The driver's request breaks the rules of this device.
    #[error("{device}: {reason}")]
    Protocol {
        /// The device's name.
        device: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The host refused something the device cannot do without.
    #[error("{device}: {action}")]
    Host {
        /// The device's name.
        device: &'static str,
        /// What it was about to do.
        action: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Which way a host descriptor has become ready, or is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Data to read, a connection to accept, or the end of the stream.
    pub readable: bool,
    /// Room to write.
    pub writable: bool,
    /// Closed in both directions, or broken. Always reported, never asked for.
    pub hung_up: bool,
}

impl Readiness {
    /// Ready to read.
    pub const READABLE: Self = Self {
        readable: true,
        writable: false,
        hung_up: false,
    };
    /// Ready in both directions.
    pub const BOTH: Self = Self {
        readable: true,
        writable: true,
        hung_up: false,
    };
}

/// The host descriptors a device wants to hear about. Closing a descriptor ends the watch.
pub trait HostFds {
    /// Starts a watch; `token` comes back in [`VirtioDevice::process_host_event`].
    ///
    /// A change is told once (EPOLLET): the device goes on until the descriptor would block, or
    /// remembers that it has not.
    fn watch(&mut self, fd: BorrowedFd<'_>, token: u32, wanted: Readiness) -> io::Result<()>;

    /// Ends a watch; ending one that does not exist is no error.
    fn unwatch(&mut self, fd: BorrowedFd<'_>);
}

/// What a device may touch while it works.
pub struct DeviceIo<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// The device's queues.
    pub queues: Vec<&'a mut Queue>,
    /// The device's host descriptors.
    pub host: &'a mut dyn HostFds,
}

impl<'a> DeviceIo<'a> {
    /// The next request on a queue. When there is none, the driver is asked to ring for the next.
    pub fn pop(&mut self, index: usize) -> Result<Option<Chain<'a>>, ChainError> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(None);
        };
        match chain::pop(queue, self.memory)? {
            // A request that came in between would ring no bell.
            None if queue.enable_notification(self.memory)? => chain::pop(queue, self.memory),
            request => Ok(request),
        }
    }

    /// The next request as virtio-queue has it, for code that is not ours. It was found sound; the
    /// guest may break it since, so whoever walks it checks again.
    pub fn pop_unparsed(
        &mut self,
        index: usize,
    ) -> Result<Option<DescriptorChain<&'a GuestMemory>>, ChainError> {
        if self.pop(index)?.is_none() {
            return Ok(None);
        }
        self.unpop(index);
        match self.queues.get_mut(index) {
            Some(queue) => Ok(queue.iter(self.memory)?.next()),
            None => Ok(None),
        }
    }

    /// Puts the request that was popped last back to the front of its queue, untouched.
    pub fn unpop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.go_to_previous_position();
        }
    }

    /// Gives a request back with `written` bytes of answer.
    pub fn push(&mut self, index: usize, head: u16, written: u32) -> Result<(), ChainError> {
        match self.queues.get_mut(index) {
            Some(queue) => chain::push(queue, self.memory, head, written),
            None => Ok(()),
        }
    }

    /// Hands every waiting request of a queue to `handle`, which returns the bytes it answered.
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

/// A virtio device.
pub trait VirtioDevice: Send {
    /// What it is.
    fn info(&self) -> DeviceInfo;

    /// The driver reads its configuration space. `data` holds zeroes, which is what it finds past
    /// the end; see [`read_config_space`].
    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    /// The driver wrote to the configuration space.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready, and took `features` of those on offer.
    fn start(&mut self, _features: u64, _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver rang: a queue has requests, or answers were taken from it.
    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError>;

    /// A watched host descriptor is ready.
    fn process_host_event(
        &mut self,
        _token: u32,
        _ready: Readiness,
        _io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Forgets everything since `start`, watches included.
    fn reset(&mut self, _host: &mut dyn HostFds) {}
}

/// Answers a read at `offset` from a configuration space that lies in memory.
pub fn read_config_space(space: &[u8], offset: usize, data: &mut [u8]) {
    let rest = space.get(offset..).unwrap_or_default();
    let bytes = rest.len().min(data.len());
    data[..bytes].copy_from_slice(&rest[..bytes]);
}
