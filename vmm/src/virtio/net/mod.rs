//! virtio-net: a TAP interface of the host as a network card of the guest.

pub mod spec;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};

use self::spec::{HEADER, HEADER_NUM_BUFFERS, MAX_PACKET, feature, queue};
use super::chain::ChainError;
use super::device::{
    DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::spec::device_id;

const NAME: &str = "net";

/// The most packets moved in one direction before the other has its turn.
const BUDGET: usize = 256;

/// The sizes of the two queues.
pub const QUEUE_SIZES: &[u16] = &[256, 256];

/// The only descriptor is the TAP.
const TOKEN_TAP: u32 = 0;

/// The device.
pub struct Net {
    tap: File,
    mac: [u8; 6],
    /// A packet from the TAP, with its header, until the guest has buffers for it.
    packet: Box<[u8; HEADER + MAX_PACKET]>,
    /// The packet's length; 0 when there is none.
    length: usize,
    /// The TAP may have packets.
    readable: bool,
}

impl Net {
    /// A card on `tap`, which must be as [`rvm_protocol::vmm::Net::tap`] says.
    pub fn new(tap: File, mac: [u8; 6]) -> Self {
        Self {
            tap,
            mac,
            packet: Box::new([0; HEADER + MAX_PACKET]),
            length: 0,
            readable: false,
        }
    }

    /// Moves packets from the TAP to the guest while there are packets and buffers.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        for _ in 0..BUDGET {
            if !self.fetch()? || !self.deliver(io).map_err(broken(queue::RX))? {
                return Ok(());
            }
        }
        // The watch tells of changes only, so what is left would wait for the next packet.
        io.host.unwatch(self.tap.as_fd());
        self.watch(io.host)
    }

    /// A packet is at hand, or was read from the TAP.
    fn fetch(&mut self) -> Result<bool, DeviceError> {
        while self.length == 0 && self.readable {
            match self.tap.read(self.packet.as_mut_slice()) {
                Ok(length) => self.length = length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The interface is down; packets will come when it is up.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => self.readable = false,
                Err(source) => {
                    return Err(DeviceError::Host {
                        device: NAME,
                        action: "read the TAP",
                        source,
                    });
                }
            }
        }
        Ok(self.length > 0)
    }

    /// Copies the packet at hand to as many of the guest's buffers as it takes. False if there are
    /// too few; none is used then.
    fn deliver(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, ChainError> {
        let mut chains = Vec::new();
        let mut room = 0;
        while room < self.length {
            let Some(chain) = io.pop(queue::RX)? else {
                chains.iter().for_each(|_| io.unpop(queue::RX));
                return Ok(false);
            };
            room += chain.writable.len();
            chains.push(chain);
        }
        let count = u16::try_from(chains.len()).map_err(|_| ChainError::Endless)?;
        self.packet[HEADER_NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.packet[..self.length];
        for mut chain in chains {
            let written = chain.writable.write(rest);
            rest = &rest[written..];
            io.push(queue::RX, chain.head, written as u32)?;
        }
        self.length = 0;
        Ok(true)
    }

    /// Moves the guest's packets to the TAP.
    fn transmit(&self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        io.drain(queue::TX, |chain| {
            let length = chain.readable.len();
            if length <= HEADER || length > HEADER + MAX_PACKET {
                return Err(ChainError::Short("packet"));
            }
            // A packet that the TAP does not take, because it is full, down or does not like the
            // packet, is lost as on any wire.
            let _ = chain.readable.write_to(&self.tap, None);
            Ok(0)
        })
        .map_err(broken(queue::TX))
    }

    fn watch(&self, host: &mut dyn HostFds) -> Result<(), DeviceError> {
        host.watch(self.tap.as_fd(), TOKEN_TAP, Readiness::READABLE)
            .map_err(|source| DeviceError::Host {
                device: NAME,
                action: "watch the TAP",
                source,
            })
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::NET,
            queue_sizes: QUEUE_SIZES,
            features: feature::MAC
                | feature::MRG_RXBUF
                | feature::CSUM
                | feature::HOST_TSO4
                | feature::HOST_TSO6
                | feature::HOST_ECN
                | feature::GUEST_CSUM
                | feature::GUEST_TSO4
                | feature::GUEST_TSO6
                | feature::GUEST_ECN,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(&self.mac, offset, data);
    }

    fn start(&mut self, features: u64, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        set_offloads(&self.tap, offloads(features)).map_err(|source| DeviceError::Host {
            device: NAME,
            action: "TUNSETOFFLOAD",
            source,
        })?;
        self.watch(io.host)
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        match index {
            queue::TX => self.transmit(io),
            _ => self.receive(io),
        }
    }

    fn process_host_event(
        &mut self,
        _token: u32,
        _ready: Readiness,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        self.readable = true;
        self.receive(io)
    }

    fn reset(&mut self, host: &mut dyn HostFds) {
        host.unwatch(self.tap.as_fd());
        self.length = 0;
        self.readable = false;
    }
}

fn broken(queue: usize) -> impl FnOnce(ChainError) -> DeviceError {
    move |source| DeviceError::Queue {
        device: NAME,
        queue,
        source,
    }
}

/// Which unfinished packets the TAP may pass on, given the features that the driver took. Each
/// needs those it builds on (section 5.1.3.1); without, the TAP would refuse all.
fn offloads(features: u64) -> libc::c_uint {
    let takes = |feature: u64| features & feature != 0;
    if !takes(feature::GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in [
        (feature::GUEST_TSO4, libc::TUN_F_TSO4),
        (feature::GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if takes(feature) {
            flags |= flag;
        }
    }
    if flags != libc::TUN_F_CSUM && takes(feature::GUEST_ECN) {
        flags |= libc::TUN_F_TSO_ECN;
    }
    flags
}

#[expect(unsafe_code, reason = "ioctl")]
fn set_offloads(tap: &File, flags: libc::c_uint) -> io::Result<()> {
    let flags = libc::c_ulong::from(flags);
    // SAFETY: TUNSETOFFLOAD takes a number.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
