//! The agent: as much of it as gets a container created, started, killed and removed, none of whose
//! processes exist.

use rvm_protocol::{
    AGENT_PORT, AGENT_PROTOCOL_VERSION, POWER_OFF_BYTE, POWER_OFF_PORT, READY_PORT,
};

use crate::cpu::{copy, out8};
use crate::streams::{Credit, MAX_DATA, Packet, Received, Streams, op};
use crate::virtio::Device;

/// The most connections at a time. More are reset.
const CONNECTIONS: usize = 32;

/// The memory in which calls of the host are put together, for each connection.
const CALLS: u64 = 0x90_0000;
const CALL_BYTES: usize = 0x2_0000;

/// What the agent says of its receive buffers.
const BUFFER: u32 = 0x4_0000;

/// The length of a frame's header.
const FRAME: usize = 10;

/// Types of frames.
const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const DATA: u8 = 3;

/// SIGKILL, and the exit status of a process that it has ended.
const KILL: u64 = 9;
const KILLED: u8 = 137;

/// A connection of the host.
#[derive(Clone, Copy, Default)]
pub struct Connection {
    pub host_port: u32,
    /// 0 for a place that is free.
    pub guest_port: u32,
    /// Bytes received so far.
    received: u32,
    /// Bytes of calls that are not complete.
    held: usize,
}

/// A call that is answered later: the place of its connection, and its stream.
#[derive(Clone, Copy, Default)]
struct Waiting {
    connection: usize,
    stream: u32,
}

pub struct Agent {
    pub streams: Streams,
    pub connections: [Connection; CONNECTIONS],
    waiting: [Waiting; CONNECTIONS],
    waits: usize,
    /// The host's call for events: the place of its connection, and its stream.
    pub events: Option<(usize, u32)>,
    pub is_started: bool,
}

impl Agent {
    /// Starts the device and lets the host know.
    pub fn new(device: Device) -> Self {
        let mut agent = Self {
            streams: Streams::new(device),
            connections: [Connection::default(); CONNECTIONS],
            waiting: [Waiting::default(); CONNECTIONS],
            waits: 0,
            events: None,
            is_started: false,
        };
        let ready = packet(op::REQUEST, READY_PORT, AGENT_PORT, 0);
        agent.streams.send(ready, &[]);
        agent
    }

    /// Handles what the host has sent.
    pub fn serve(&mut self) {
        while let Some(received) = self.streams.receive() {
            self.handle(&received);
            self.streams.done(&received);
        }
    }

    fn handle(&mut self, received: &Received) {
        let Packet {
            op,
            host_port,
            guest_port,
            ..
        } = received.packet;
        let place = self.place(host_port, guest_port);
        match (op, place) {
            (op::REQUEST, None) => self.accept(host_port, guest_port),
            (op::RW, Some(place)) => self.take(place, received),
            (op::CREDIT_REQUEST, Some(place)) => self.say(place, op::CREDIT_UPDATE, &[]),
            (op::RST, Some(place)) => self.connections[place].guest_port = 0,
            (op::SHUTDOWN, Some(place)) => self.close(place),
            _ => {}
        }
    }

    fn place(&self, host_port: u32, guest_port: u32) -> Option<usize> {
        let is_it = |it: &Connection| it.host_port == host_port && it.guest_port == guest_port;
        self.connections.iter().position(is_it)
    }

    fn accept(&mut self, host_port: u32, guest_port: u32) {
        let free = self.connections.iter().position(|it| it.guest_port == 0);
        let Some(place) = free else {
            return self
                .streams
                .send(packet(op::RST, host_port, guest_port, 0), &[]);
        };
        self.connections[place] = Connection {
            host_port,
            guest_port,
            ..Connection::default()
        };
        self.say(place, op::RESPONSE, &[]);
    }

    fn close(&mut self, place: usize) {
        self.say(place, op::RST, &[]);
        self.connections[place].guest_port = 0;
    }

    /// Sends a packet over a connection.
    pub fn say(&mut self, place: usize, op: u16, data: &[u8]) {
        let Connection {
            host_port,
            guest_port,
            received,
            ..
        } = self.connections[place];
        self.streams
            .send(packet(op, host_port, guest_port, received), data);
    }

    /// Takes data: of a call, or of a stream, which nobody reads.
    fn take(&mut self, place: usize, received: &Received) {
        let connection = &mut self.connections[place];
        let bytes = received.length.min(MAX_DATA);
        connection.received = connection.received.wrapping_add(bytes as u32);
        if connection.guest_port == AGENT_PORT && connection.held + bytes <= CALL_BYTES {
            copy(calls(place) + connection.held as u64, received.data, bytes);
            connection.held += bytes;
        }
        self.say(place, op::CREDIT_UPDATE, &[]);
        while self.next_call(place) {}
    }

    /// Answers the next call that is complete.
    fn next_call(&mut self, place: usize) -> bool {
        let held = self.connections[place].held;
        let bytes = memory(calls(place), held);
        let Some(header) = bytes.get(..FRAME) else {
            return false;
        };
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (length, stream, kind) = (number(0) as usize, number(4), header[8]);
        let Some(message) = bytes.get(FRAME..FRAME + length) else {
            return false;
        };
        if kind == REQUEST {
            self.answer(place, stream, message);
        }
        let rest = held - FRAME - length;
        crate::cpu::copy(calls(place), calls(place) + (FRAME + length) as u64, rest);
        self.connections[place].held = rest;
        true
    }

    fn answer(&mut self, place: usize, stream: u32, request: &[u8]) {
        let (method, _) = field(request, 2).unwrap_or_default();
        let (payload, _) = field(request, 3).unwrap_or_default();
        match method {
            b"Check" => {
                let version = AGENT_PROTOCOL_VERSION as u8;
                self.respond(place, stream, &[10, 1, b'1', 18, 1, b'6', 40, version]);
            }
            b"CreateContainer" | b"ExecProcess" => self.respond(place, stream, &[8, 2]),
            b"WaitProcess" if self.waits < CONNECTIONS => {
                self.waiting[self.waits] = Waiting {
                    connection: place,
                    stream,
                };
                self.waits += 1;
            }
            b"Events" => self.events = Some((place, stream)),
            b"SignalProcess" => {
                self.respond(place, stream, &[]);
                if field(payload, 3).is_some_and(|(_, signal)| signal == KILL) {
                    self.end();
                }
            }
            b"Shutdown" => {
                self.respond(place, stream, &[]);
                out8(POWER_OFF_PORT, POWER_OFF_BYTE);
            }
            _ => {
                self.respond(place, stream, &[]);
                self.is_started |= method == b"StartContainer";
            }
        }
    }

    /// Ends every process.
    fn end(&mut self) {
        for index in 0..std::mem::take(&mut self.waits) {
            let Waiting { connection, stream } = self.waiting[index];
            // A varint of two bytes.
            self.respond(connection, stream, &[8, KILLED | 0x80, KILLED >> 7]);
        }
        for place in 0..CONNECTIONS {
            let port = self.connections[place].guest_port;
            if port != 0 && port != AGENT_PORT {
                self.close(place);
            }
        }
    }

    fn respond(&mut self, place: usize, stream: u32, payload: &[u8]) {
        let mut message = [0; 32];
        // Response.payload
        (message[0], message[1]) = (18, payload.len() as u8);
        message[2..2 + payload.len()].copy_from_slice(payload);
        self.frame(place, stream, RESPONSE, &message[..2 + payload.len()]);
    }

    /// Sends a frame of at most 100 bytes.
    pub fn frame(&mut self, place: usize, stream: u32, kind: u8, message: &[u8]) {
        let mut frame = [0; FRAME + 100];
        frame[..4].copy_from_slice(&(message.len() as u32).to_be_bytes());
        frame[4..8].copy_from_slice(&stream.to_be_bytes());
        frame[8] = kind;
        frame[FRAME..FRAME + message.len()].copy_from_slice(message);
        self.say(place, op::RW, &frame[..FRAME + message.len()]);
    }
}

pub fn packet(op: u16, host_port: u32, guest_port: u32, fwd_cnt: u32) -> Packet {
    let credit = Credit {
        buf_alloc: BUFFER,
        fwd_cnt,
    };
    Packet {
        op,
        host_port,
        guest_port,
        flags: 0,
        credit,
    }
}

fn calls(place: usize) -> u64 {
    CALLS + (place * CALL_BYTES) as u64
}

fn memory(start: u64, bytes: usize) -> &'static [u8] {
    // SAFETY: the memory is one connection's, which is written between two calls alone.
    unsafe { std::slice::from_raw_parts(start as *const u8, bytes) }
}

/// A field of a message: its bytes, or its number; None if the message has no such field.
fn field(mut message: &[u8], wanted: u64) -> Option<(&[u8], u64)> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let value = varint(&mut message)?;
        let mut bytes: &[u8] = &[];
        // The host sends only numbers and bytes.
        if tag & 7 == 2 {
            (bytes, message) = message.split_at_checked(value as usize)?;
        }
        if tag >> 3 == wanted {
            return Some((bytes, value));
        }
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
