//! virtio-vsock: packets to the host's programs and from them.

use rvm_protocol::GUEST_CID;

use crate::cpu::{copy, get16, get32, put16, put32, put64};
use crate::virtio::{Device, Queue, WRITE};

/// Operations, section 5.10.6 of the virtio specification.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The host's context id.
const HOST_CID: u64 = 2;

/// The size of a packet's header.
const HEADER: usize = 44;

/// The memory of packets from the host, and of those to it: a page for each.
const RECEIVED: u64 = 0x80_0000;
const SENT: u64 = 0xe0_0000;
const PAGE: u64 = 0x1000;

/// The most data of a packet that is sent.
pub const MAX_DATA: usize = PAGE as usize - HEADER;

/// What the guest says of its receive buffers.
#[derive(Clone, Copy)]
pub struct Credit {
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

/// A packet's header.
#[derive(Clone, Copy)]
pub struct Packet {
    pub op: u16,
    pub host_port: u32,
    pub guest_port: u32,
    pub flags: u32,
    pub credit: Credit,
}

/// A packet from the host, with its data in the guest's memory.
pub struct Received {
    pub packet: Packet,
    pub data: u64,
    pub length: usize,
    head: u16,
}

/// The device.
pub struct Streams {
    device: Device,
    receive: Queue,
    transmit: Queue,
    in_flight: u16,
}

impl Streams {
    pub fn new(device: Device) -> Self {
        let [receive, transmit, ..] = device.start();
        let mut streams = Self {
            device,
            receive,
            transmit,
            in_flight: 0,
        };
        for index in 0..receive.entries / 2 {
            streams.give(index);
        }
        streams.receive.notify();
        streams
    }

    /// Starts the device anew, without buffers to receive in.
    pub fn restart_deaf(&mut self) {
        [self.receive, self.transmit, ..] = self.device.start();
        self.in_flight = 0;
    }

    fn give(&mut self, index: u16) {
        let address = RECEIVED + u64::from(index) * PAGE;
        self.receive.describe(index, address, PAGE as u32, WRITE, 0);
        self.receive.post(index);
    }

    /// The next packet, which [`Streams::done`] is to follow.
    pub fn receive(&mut self) -> Option<Received> {
        let (head, _) = self.receive.take()?;
        let start = RECEIVED + u64::from(head) * PAGE;
        let packet = Packet {
            op: get16(start + 30),
            host_port: get32(start + 16),
            guest_port: get32(start + 20),
            flags: get32(start + 32),
            credit: Credit {
                buf_alloc: get32(start + 36),
                fwd_cnt: get32(start + 40),
            },
        };
        let length = get32(start + 24) as usize;
        Some(Received {
            packet,
            data: start + HEADER as u64,
            length,
            head,
        })
    }

    pub fn done(&mut self, received: &Received) {
        self.give(received.head);
        self.receive.notify();
    }

    /// Prepares a packet that says it has `length` bytes of data, and has these. See
    /// [`Streams::flush`].
    pub fn prepare(&mut self, packet: Packet, data: &[u8], length: u32) {
        if self.in_flight >= self.transmit.entries {
            self.flush();
        }
        while self.in_flight >= self.transmit.entries {
            self.in_flight -= u16::from(self.transmit.take().is_some());
        }
        let index = self.transmit.next_place();
        let start = SENT + u64::from(index) * PAGE;
        put64(start, GUEST_CID.into());
        put64(start + 8, HOST_CID);
        put32(start + 16, packet.guest_port);
        put32(start + 20, packet.host_port);
        put32(start + 24, length);
        // VIRTIO_VSOCK_TYPE_STREAM
        put16(start + 28, 1);
        put16(start + 30, packet.op);
        put32(start + 32, packet.flags);
        put32(start + 36, packet.credit.buf_alloc);
        put32(start + 40, packet.credit.fwd_cnt);
        let data = &data[..data.len().min(MAX_DATA)];
        copy(start + HEADER as u64, data.as_ptr() as u64, data.len());
        self.transmit
            .describe(index, start, (HEADER + data.len()) as u32, 0, 0);
        self.transmit.post(index);
        self.in_flight += 1;
    }

    /// Lets the device have what is prepared.
    pub fn flush(&mut self) {
        self.transmit.notify();
    }

    pub fn send(&mut self, packet: Packet, data: &[u8]) {
        self.prepare(packet, data, data.len() as u32);
        self.flush();
    }
}
