//! virtio-net: a TAP interface of the host as a network card of the guest.

pub mod spec;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};

use self::spec::{
    CONFIG_BYTES, CONFIG_MTU, HEADER, HEADER_NUM_BUFFERS, MAX_PACKET, feature, queue,
};
use super::chain::ChainError;
use super::device::{
    DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::spec::device_id;

const NAME: &str = "net";

/// The most packets moved in one direction before the other has its turn.
const BUDGET: usize = 256;

/// The only descriptor is the TAP.
const TOKEN_TAP: u32 = 0;

/// The device.
pub struct Net {
    tap: File,
    config: [u8; CONFIG_BYTES],
    /// A packet from the TAP, with its header, until the guest has buffers for it.
    packet: Box<[u8; HEADER + MAX_PACKET]>,
    /// The packet's length; 0 when there is none.
    length: usize,
    /// The TAP may have packets.
    readable: bool,
}

impl Net {
    /// A card on `tap`, which must have IFF_NO_PI and IFF_VNET_HDR set.
    pub fn new(tap: File, mac: [u8; 6], mtu: u16) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tap, true)?;
        set_vnet_header_size(&tap)?;
        let mut config = [0; CONFIG_BYTES];
        config[..mac.len()].copy_from_slice(&mac);
        config[CONFIG_MTU..].copy_from_slice(&mtu.to_le_bytes());
        Ok(Self {
            tap,
            config,
            packet: Box::new([0; HEADER + MAX_PACKET]),
            length: 0,
            readable: false,
        })
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
            queue_sizes: &[256, 256],
            features: feature::MAC
                | feature::MTU
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
        read_config_space(&self.config, offset, data);
    }

    fn start(&mut self, features: u64, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        set_offload(&self.tap, features).map_err(|source| DeviceError::Host {
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

/// Tells the TAP which unfinished packets the driver takes.
fn set_offload(tap: &File, features: u64) -> io::Result<()> {
    let mut flags = 0;
    for (feature, flag) in [
        (feature::GUEST_CSUM, libc::TUN_F_CSUM),
        (feature::GUEST_TSO4, libc::TUN_F_TSO4),
        (feature::GUEST_TSO6, libc::TUN_F_TSO6),
        (feature::GUEST_ECN, libc::TUN_F_TSO_ECN),
    ] {
        if features & feature != 0 {
            flags |= flag;
        }
    }
    // Without a checksum to finish there is no segmentation either.
    if flags & libc::TUN_F_CSUM == 0 {
        flags = 0;
    }
    tap_ioctl(tap, libc::TUNSETOFFLOAD, Argument::Value(flags))
}

fn set_vnet_header_size(tap: &File) -> io::Result<()> {
    tap_ioctl(
        tap,
        libc::TUNSETVNETHDRSZ,
        Argument::Pointer(HEADER as libc::c_int),
    )
}

enum Argument {
    Value(libc::c_uint),
    Pointer(libc::c_int),
}

#[expect(unsafe_code, reason = "ioctl")]
fn tap_ioctl(tap: &File, request: libc::Ioctl, argument: Argument) -> io::Result<()> {
    // SAFETY: both requests take an int, TUNSETOFFLOAD by value and TUNSETVNETHDRSZ through a
    // pointer that they only read.
    let result = unsafe {
        match argument {
            Argument::Value(value) => {
                libc::ioctl(tap.as_raw_fd(), request, libc::c_ulong::from(value))
            }
            Argument::Pointer(value) => {
                libc::ioctl(tap.as_raw_fd(), request, std::ptr::from_ref(&value))
            }
        }
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
