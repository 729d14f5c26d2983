//! What a device thread waits for: the sources of its events, and the host descriptors of devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::device::{HostFds, Readiness};

/// The source of an event within a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The doorbell of the queue with this index.
    Doorbell(usize),
    /// A host descriptor, by the device's token for it.
    Host(u32),
}

const DOORBELL: u64 = 1 << 32;

impl Source {
    /// Packs a source and its slot into epoll's 64 bits: the slot in the upper 16, then 16 for the
    /// kind, then the queue or the token.
    pub(super) fn encode(self, slot: u16) -> EventData {
        let low = match self {
            Self::Doorbell(queue) => DOORBELL | queue as u64,
            Self::Host(token) => u64::from(token),
        };
        EventData::new_u64(u64::from(slot) << 48 | low)
    }

    pub(super) fn decode(data: u64) -> (usize, Self) {
        let low = data as u32;
        let source = if data & DOORBELL != 0 {
            Self::Doorbell(low as usize)
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
pub(super) struct Watches {
    pub(super) epoll: Arc<OwnedFd>,
    pub(super) slot: u16,
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_source_survives_epoll(slot: u16, queue in 0..64usize, token: u32) {
            for source in [Source::Doorbell(queue), Source::Host(token)] {
                prop_assert_eq!(
                    Source::decode(source.encode(slot).u64()),
                    (usize::from(slot), source)
                );
            }
        }
    }
}
