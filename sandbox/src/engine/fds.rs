//! The descriptors that go to rvm-vmm with a configuration.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rvm_protocol::vmm::{self, FdIndex, Net, VsockPort};

use super::PlacedDisk;
use crate::network::NicBackend;

/// Descriptors in the order in which they are sent. A configuration names each by its place.
#[derive(Default)]
pub(super) struct Fds(Vec<OwnedFd>);

impl Fds {
    pub(super) fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        self.0.push(fd.into());
        FdIndex(self.0.len() - 1)
    }

    pub(super) fn add_ports(&mut self, ports: Vec<(u32, UnixListener)>) -> Vec<VsockPort> {
        let add = |(port, listener)| VsockPort {
            port,
            listener: self.add(listener),
        };
        ports.into_iter().map(add).collect()
    }

    pub(super) fn add_nets(&mut self, cards: Vec<NicBackend>) -> Vec<Net> {
        let add = |card: NicBackend| Net {
            tap: self.add(card.tap),
            mac: card.mac,
        };
        cards.into_iter().map(add).collect()
    }

    pub(super) fn add_disks(&mut self, disks: Vec<PlacedDisk>) -> Vec<vmm::PlacedDisk> {
        let add = |placed: PlacedDisk| vmm::PlacedDisk {
            slot: placed.slot,
            file: self.add(placed.file),
            disk: placed.disk,
            name: placed.name,
        };
        disks.into_iter().map(add).collect()
    }

    pub(super) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}
