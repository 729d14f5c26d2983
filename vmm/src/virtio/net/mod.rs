//! virtio-net: a TAP interface of the host as a network card of the guest, section 5.1 of the
//! specification.

mod spec;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};

use self::spec::{HEADER, HEADER_NUM_BUFFERS, MAX_PACKET, feature, queue};
use super::chain::ChainError;
use super::device::{
    DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::rate::Limiter;
use super::spec::device_id;

pub use self::spec::QUEUE_SIZES;
use rvm_protocol::vmm::Rates;

const NAME: &str = "net";

/// The tokens of the host descriptors: the TAP, and the timers of the limiters.
const TOKEN_TAP: u32 = 0;
const TOKEN_RX: u32 = 1;
const TOKEN_TX: u32 = 2;

pub struct Net {
    tap: File,
    mac: [u8; 6],
    /// A packet from the TAP, with its header, which waits for buffers of the guest.
    packet: Box<[u8; HEADER + MAX_PACKET]>,
    /// The length of `packet`; 0 if there is none.
    length: usize,
    /// The TAP may have more packets.
    readable: bool,
    rx: Limiter,
    tx: Limiter,
}

impl Net {
    /// A card on `tap`, which is as [`rvm_protocol::vmm::Net::tap`] demands.
    pub fn new(tap: File, mac: [u8; 6], rates: &Rates) -> io::Result<Self> {
        Ok(Self {
            tap,
            mac,
            packet: Box::new([0; HEADER + MAX_PACKET]),
            length: 0,
            readable: false,
            rx: Limiter::new(&rates.net_rx)?,
            tx: Limiter::new(&rates.net_tx)?,
        })
    }

    /// Moves packets from the TAP to the guest while there are packets and buffers.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while self.rx.admits().map_err(timer)?
            && self.fetch()?
            && self
                .deliver(io)
                .map_err(DeviceError::queue(NAME, queue::RX))?
        {}
        Ok(())
    }

    /// Reads a packet from the TAP unless one is waiting. False if there is none.
    fn fetch(&mut self) -> Result<bool, DeviceError> {
        while self.length == 0 && self.readable {
            match self.tap.read(self.packet.as_mut_slice()) {
                Ok(length) => self.length = length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The interface is down; the watch reports packets when it is up again.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => self.readable = false,
                Err(error) => return Err(DeviceError::host(NAME, "read the TAP")(error)),
            }
        }
        Ok(self.length > 0)
    }

    /// Copies the waiting packet to as many of the guest's buffers as it needs. False if there are
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
        self.rx.count(self.length - HEADER.min(self.length));
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
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while self.tx.admits().map_err(timer)?
            && self
                .transmit_one(io)
                .map_err(DeviceError::queue(NAME, queue::TX))?
        {}
        Ok(())
    }

    /// False if there is no packet.
    fn transmit_one(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, ChainError> {
        let Some(chain) = io.pop(queue::TX)? else {
            return Ok(false);
        };
        let length = chain.readable.len();
        if length <= HEADER || length > HEADER + MAX_PACKET {
            return Err(ChainError::Short("packet"));
        }
        // A packet that the TAP refuses, because it is full or down or the packet is malformed, is
        // dropped, as on any network.
        let _ = chain.readable.write_to(&self.tap, None);
        self.tx.count(length - HEADER);
        io.push(queue::TX, chain.head, 0)?;
        Ok(true)
    }

    fn watch(&self, host: &mut dyn HostFds) -> Result<(), DeviceError> {
        host.watch(self.tap.as_fd(), TOKEN_TAP, Readiness::READABLE)
            .map_err(DeviceError::host(NAME, "watch the TAP"))
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
        set_offloads(&self.tap, offloads(features))
            .map_err(DeviceError::host(NAME, "TUNSETOFFLOAD"))?;
        self.rx.watch(io.host, TOKEN_RX).map_err(timer)?;
        self.tx.watch(io.host, TOKEN_TX).map_err(timer)?;
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
        token: u32,
        _ready: Readiness,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        if token == TOKEN_TX {
            return self.transmit(io);
        }
        self.readable |= token == TOKEN_TAP;
        self.receive(io)
    }

    fn reset(&mut self, host: &mut dyn HostFds) {
        host.unwatch(self.tap.as_fd());
        self.rx.unwatch(host);
        self.tx.unwatch(host);
        self.length = 0;
        self.readable = false;
    }
}

fn timer(error: io::Error) -> DeviceError {
    DeviceError::host(NAME, "set a limiter's timer")(error)
}

/// The offloads (TUNSETOFFLOAD) that the TAP may use, given the features that the driver accepted.
/// A feature without those that it requires (section 5.1.3.1) is left out, or the TAP would refuse
/// all.
fn offloads(features: u64) -> libc::c_uint {
    let accepted = |feature: u64| features & feature != 0;
    if !accepted(feature::GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in [
        (feature::GUEST_TSO4, libc::TUN_F_TSO4),
        (feature::GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if accepted(feature) {
            flags |= flag;
        }
    }
    if flags != libc::TUN_F_CSUM && accepted(feature::GUEST_ECN) {
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
