//! virtio-vsock: streams between host programs and the guest, over Unix sockets, section 5.10 of
//! the specification.
//!
//! Each guest port that host programs can connect to has a listening Unix socket on the host; a
//! connection to the socket becomes a connection to the port. The guest cannot connect to the host.
//! Its one request, to [`READY_PORT`], means that its listeners are ready; before it, host
//! connections wait in their socket's backlog. A machine that becomes a template gets no answer to
//! it: the machines that are restored from the template do.
//!
//! The streams of a machine that is restored from a checkpoint wait for their host programs, which
//! know them by the ids that they have begun with (see [`STREAM_PORT`]).

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub(crate) mod hostile;
mod spec;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rvm_protocol::{GUEST_CID, READY_PORT, STREAM_PORT};
use vmm_sys_util::eventfd::EventFd;

use self::connection::{Broken, Connection};
use self::spec::{HOST_CID, Header, QUEUE_SIZES, TYPE_STREAM, op, queue};
use super::chain::{Buffers, ChainError};
use super::device::{
    Busy, DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::spec::device_id;
use crate::fds::borrow_eventfd;

/// The most streams at a time. Only host programs open streams.
const MAX_CONNECTIONS: usize = 4096;

/// The most resets for unknown streams that wait for receive buffers of the guest, beside one per
/// stream; the rest are dropped. A guest that sends packets of unknown streams and provides no
/// buffers would otherwise fill memory.
const MAX_STRAY_RESETS: usize = 64;

/// The first host port. Host descriptors are watched with their host port as token; smaller tokens
/// are indexes of listeners.
const FIRST_HOST_PORT: u32 = 1 << 16;

/// The token of the event after which no stream of a checkpoint is claimed any more.
const DROP: u32 = FIRST_HOST_PORT - 1;

const NAME: &str = "vsock";

pub struct Vsock {
    config: [u8; 8],
    listeners: Vec<(u32, UnixListener)>,
    /// The guest's listeners are ready.
    ready: bool,
    /// Where the guest's request to [`READY_PORT`] is only noted.
    hold: Option<Arc<HeldRequest>>,
    /// The event after which no stream of a checkpoint is claimed any more.
    drop: Option<Arc<EventFd>>,
    /// By host port.
    connections: HashMap<u32, Connection>,
    next_host_port: u32,
    /// Host ports of the streams that have a packet for the guest, each once.
    send_queue: VecDeque<u32>,
    /// Resets for streams that do not exist: host port, guest port.
    resets: VecDeque<(u32, u32)>,
}

impl Vsock {
    /// A device that connects each listener's connections to the guest port beside it.
    pub fn new(listeners: Vec<(u32, UnixListener)>) -> std::io::Result<Self> {
        for (_, listener) in &listeners {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            config: u64::from(GUEST_CID).to_le_bytes(),
            listeners,
            ready: false,
            hold: None,
            drop: None,
            connections: HashMap::new(),
            next_host_port: FIRST_HOST_PORT,
            send_queue: VecDeque::new(),
            resets: VecDeque::new(),
        })
    }

    /// A device without listeners, which notes the guest's request to [`READY_PORT`] in `request`.
    pub fn of_template(request: Arc<HeldRequest>) -> std::io::Result<Self> {
        let device = Self::new(Vec::new())?;
        Ok(Self {
            hold: Some(request),
            ..device
        })
    }

    /// A device whose guest has streams from a checkpoint. Those that no host program has claimed
    /// are reset after the event `drop`.
    pub fn of_checkpoint(
        listeners: Vec<(u32, UnixListener)>,
        drop: Arc<EventFd>,
    ) -> std::io::Result<Self> {
        let device = Self::new(listeners)?;
        Ok(Self {
            drop: Some(drop),
            ..device
        })
    }

    /// Answers the request to [`READY_PORT`] that came from this port of the guest.
    fn answer_ready(&mut self, guest_port: u32, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if let Some(request) = &self.hold {
            request.note(guest_port);
            return Ok(());
        }
        self.send_reset(READY_PORT, guest_port);
        self.set_ready(io)
    }

    /// Starts to accept connections: the guest's listeners are ready.
    fn set_ready(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if std::mem::replace(&mut self.ready, true) {
            return Ok(());
        }
        for token in 0..self.listeners.len() {
            // A fresh watch reports the connections that wait already.
            io.host
                .watch(
                    self.listeners[token].1.as_fd(),
                    token as u32,
                    Readiness::READABLE,
                )
                .map_err(DeviceError::host(NAME, "watch"))?;
        }
        Ok(())
    }

    fn accept(&mut self, token: usize, host: &mut dyn HostFds) {
        let port = self.listeners.get(token).map(|(port, _)| *port);
        while let (Some(port), Some((_, listener))) = (port, self.listeners.get(token)) {
            let stream = match connection::accept(listener) {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(error) => return log::warn!("vsock: accept for port {port}: {error}"),
            };
            if self.connections.len() == MAX_CONNECTIONS {
                log::warn!("vsock: more than {MAX_CONNECTIONS} streams; one was refused");
                continue;
            }
            let id = next_free(&mut self.next_host_port, &self.connections);
            if let Err(error) = host.watch(stream.as_fd(), id, Readiness::BOTH) {
                log::warn!("vsock: watch: {error}");
                continue;
            }
            // The event of its socket follows, readable or not.
            let connection = Connection::new(stream, port, port == STREAM_PORT);
            self.connections.insert(id, connection);
            self.update(id, true);
        }
    }

    /// Reads a stream's id, if it begins with one. A stream that was saved and has that id goes on
    /// with the host program of this one, which is no stream of its own then.
    fn identify(&mut self, id: u32, host: &mut dyn HostFds) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.take_id() {
            Ok(None) => {}
            Ok(Some(wanted)) => self.claim(wanted, id, host),
            Err(Broken) => _ = self.connections.remove(&id),
        }
    }

    fn claim(&mut self, wanted: [u8; 8], id: u32, host: &mut dyn HostFds) {
        let is_wanted = |connection: &Connection| connection.unclaimed_id() == Some(wanted);
        let saved = self.connections.iter();
        let saved = saved.filter(|(_, connection)| is_wanted(connection));
        let Some(saved) = saved.map(|(id, _)| *id).next() else {
            return;
        };
        let claimer = self.connections.remove(&id);
        let connection = self.connections.get_mut(&saved);
        let (Some(claimer), Some(connection)) = (claimer, connection) else {
            return;
        };
        if let Some(fd) = claimer.fd() {
            host.unwatch(fd);
            if let Err(error) = host.watch(fd, saved, Readiness::BOTH) {
                log::warn!("vsock: watch: {error}");
            }
        }
        let intact = connection.claim(claimer).is_ok();
        self.update(saved, intact);
    }

    /// Resets the streams that were saved and that no host program has claimed.
    fn drop_unclaimed(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let unclaimed = |(id, connection): (&u32, &Connection)| {
            let port = connection.guest_port();
            connection.is_unclaimed().then_some((*id, port))
        };
        let unclaimed: Vec<_> = self.connections.iter().filter_map(unclaimed).collect();
        for (id, guest_port) in unclaimed {
            // A reset for each has room.
            self.send_reset(id, guest_port);
            self.connections.remove(&id);
        }
        self.send(io).map_err(DeviceError::queue(NAME, queue::RX))
    }

    /// Sends packets to the guest while there are packets and receive buffers.
    fn send(&mut self, io: &mut DeviceIo<'_>) -> Result<(), ChainError> {
        while !self.resets.is_empty() || !self.send_queue.is_empty() {
            let Some(mut chain) = io.pop(queue::RX)? else {
                return Ok(());
            };
            let mut target = chain.writable.split_to(size_of::<Header>())?;
            let Some(header) = self.next_packet(&mut chain.writable) else {
                io.unpop(queue::RX);
                continue;
            };
            let length = size_of::<Header>() as u32 + header.len;
            target.write_obj(&header, "vsock header")?;
            io.push(queue::RX, chain.head, length)?;
        }
        Ok(())
    }

    /// The next packet for the guest. None if the stream whose turn it was has none.
    fn next_packet(&mut self, data: &mut Buffers<'_>) -> Option<Header> {
        if let Some((host_port, guest_port)) = self.resets.pop_front() {
            return Some(header(host_port, guest_port, op::RST));
        }
        let id = self.send_queue.pop_front()?;
        let connection = self.connections.get_mut(&id)?;
        connection.is_queued = false;
        let guest_port = connection.guest_port();
        match connection.next_packet(data) {
            Ok(Some((op, flags, len))) => {
                let mut header = Header {
                    flags,
                    len,
                    ..header(id, guest_port, op)
                };
                connection.set_credit(&mut header);
                if connection.wants_to_send() {
                    connection.is_queued = true;
                    self.send_queue.push_back(id);
                }
                Some(header)
            }
            Ok(None) => None,
            Err(Broken) => {
                self.connections.remove(&id);
                Some(header(id, guest_port, op::RST))
            }
        }
    }

    /// Handles every packet that the guest has sent.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while let Some(mut chain) = io
            .pop(queue::TX)
            .map_err(DeviceError::queue(NAME, queue::TX))?
        {
            let header: Header = chain
                .readable
                .read_obj("vsock header")
                .map_err(DeviceError::queue(NAME, queue::TX))?;
            let data = chain
                .readable
                .split_to(header.len as usize)
                .map_err(DeviceError::queue(NAME, queue::TX))?;
            self.dispatch(&header, data, io)?;
            io.push(queue::TX, chain.head, 0)
                .map_err(DeviceError::queue(NAME, queue::TX))?;
        }
        Ok(())
    }

    fn dispatch(
        &mut self,
        header: &Header,
        data: Buffers<'_>,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        let (host_port, guest_port) = (header.dst_port, header.src_port);
        if { header.src_cid } != u64::from(GUEST_CID) || { header.dst_cid } != HOST_CID {
            // There are no other endpoints.
            return Ok(());
        }
        if { header.op } == op::REQUEST && host_port == READY_PORT {
            return self.answer_ready(guest_port, io);
        }
        let connection = self
            .connections
            .get_mut(&host_port)
            .filter(|connection| connection.guest_port() == guest_port);
        let Some(connection) = connection else {
            if { header.op } != op::RST {
                self.send_reset(host_port, guest_port);
            }
            return Ok(());
        };
        if { header.op } == op::RST {
            if !connection.handle_reset() {
                self.connections.remove(&host_port);
            }
            return Ok(());
        }
        let intact = { header.kind } == TYPE_STREAM && connection.receive(header, data).is_ok();
        self.update(host_port, intact);
        Ok(())
    }

    /// Queues a stream that has packets to send, or removes one that is finished or not intact.
    fn update(&mut self, id: u32, intact: bool) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if !intact || connection.is_finished() {
            let guest_port = connection.guest_port();
            self.connections.remove(&id);
            self.send_reset(id, guest_port);
        } else if connection.wants_to_send() && !connection.is_queued {
            connection.is_queued = true;
            self.send_queue.push_back(id);
        }
    }

    /// Handles an event of a host program's socket.
    fn handle_ready(&mut self, id: u32, ready: Readiness) {
        if let Some(connection) = self.connections.get_mut(&id) {
            if ready.readable || ready.hung_up {
                connection.set_readable();
            }
            let intact = !(ready.writable || ready.hung_up) || connection.flush().is_ok();
            self.update(id, intact);
        }
    }

    fn send_reset(&mut self, host_port: u32, guest_port: u32) {
        if self.resets.len() < MAX_STRAY_RESETS + self.connections.len() {
            self.resets.push_back((host_port, guest_port));
        }
    }
}

impl VirtioDevice for Vsock {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::VSOCK,
            queue_sizes: QUEUE_SIZES,
            features: 0,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if index == queue::TX {
            self.receive(io)?;
        }
        self.send(io).map_err(DeviceError::queue(NAME, queue::RX))
    }

    fn process_host_event(
        &mut self,
        token: u32,
        ready: Readiness,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        if token == DROP {
            let has_come = self.drop.as_ref().is_some_and(|event| event.read().is_ok());
            return if has_come {
                self.drop_unclaimed(io)
            } else {
                Ok(())
            };
        }
        if token < FIRST_HOST_PORT {
            self.accept(token as usize, io.host);
        } else {
            self.identify(token, io.host);
            self.handle_ready(token, ready);
        }
        self.send(io).map_err(DeviceError::queue(NAME, queue::RX))
    }

    fn reset(&mut self, host: &mut dyn HostFds) {
        for (_, listener) in &self.listeners {
            host.unwatch(listener.as_fd());
        }
        if let Some(event) = &self.drop {
            host.unwatch(borrow_eventfd(event));
        }
        self.ready = false;
        self.connections.clear();
        self.send_queue.clear();
        self.resets.clear();
    }

    fn save(&mut self, _io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        self.save_state()
    }

    fn restore(&mut self, state: &[u8], io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.restore_state(state, io)?;
        self.send(io).map_err(DeviceError::queue(NAME, queue::RX))
    }
}

/// The guest's request to [`READY_PORT`], if it has come.
#[derive(Debug, Default)]
pub struct HeldRequest(AtomicU64);

impl HeldRequest {
    /// Above every port.
    const CAME: u64 = 1 << 32;

    fn note(&self, guest_port: u32) {
        self.0
            .store(Self::CAME | u64::from(guest_port), Ordering::Release);
    }

    /// The port of the guest that it came from.
    pub fn guest_port(&self) -> Option<u32> {
        let value = self.0.load(Ordering::Acquire);
        (value & Self::CAME != 0).then_some(value as u32)
    }
}

fn header(host_port: u32, guest_port: u32, op: u16) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: u64::from(GUEST_CID),
        src_port: host_port,
        dst_port: guest_port,
        kind: TYPE_STREAM,
        op,
        ..Header::default()
    }
}

/// The next host port that is not in use. There are far more ports than streams, so the loop ends.
fn next_free(next: &mut u32, taken: &HashMap<u32, Connection>) -> u32 {
    loop {
        let port = *next;
        *next = next.checked_add(1).unwrap_or(FIRST_HOST_PORT);
        if !taken.contains_key(&port) {
            return port;
        }
    }
}
