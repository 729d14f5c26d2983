//! One stream between a host program and a guest program, and its flow control.
//!
//! ```text
//!            REQUEST sent            RESPONSE
//! accepted ───────────────> Opening ──────────> Open ──> (removed)
//!                              └── RST ──> (removed)  RST either way, or both sides have said
//!                                                     that they send and receive no more
//! ```
//!
//! Data for the guest stays in the host's socket until the guest has room for it; data from the
//! guest waits in `backlog`, which never grows past [`RECEIVE_BUFFER`], until the host program
//! reads. So a slow reader on either side stops the writer on the other, and nothing else grows.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::spec::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::virtio::chain::Buffers;

/// What the guest may send before we have passed it on, in bytes, announced as buf_alloc. It is
/// the guest's means to make us hold memory, once per connection.
pub const RECEIVE_BUFFER: u32 = 256 * 1024;

/// The guest hears of freed room when this much has become free since it last did: often enough
/// never to stop a writer whose reader keeps up.
const CREDIT_STEP: u32 = RECEIVE_BUFFER / 4;

/// The guest broke the protocol on this connection, or the host's end is gone: either way the
/// guest is told with a reset.
#[derive(Debug)]
pub struct Broken;

/// What must be told to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    request: bool,
    credit: bool,
    /// The flags of a SHUTDOWN that was not sent yet.
    shutdown: u32,
}

/// One stream.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
    /// It stands in the device's queue of streams with something for the guest.
    pub waiting: bool,
    open: bool,
    /// The host's socket may have data for the guest.
    readable: bool,
    pending: Pending,
    /// What we told the guest we will not do any more, as SHUTDOWN flags.
    closed_here: u32,
    /// What the guest told us it will not do any more.
    closed_there: u32,
    /// The guest's receive buffer and how much has left it.
    peer_alloc: u32,
    peer_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// Bytes from the guest that the host's socket took.
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest last heard it.
    announced: Wrapping<u32>,
    /// Bytes from the guest that the host's socket did not take yet.
    backlog: VecDeque<u8>,
}

impl Connection {
    /// A host program has connected; the guest has yet to hear of it. `stream` does not block.
    pub fn new(stream: UnixStream, guest_port: u32) -> Self {
        Self {
            stream,
            guest_port,
            waiting: true,
            open: false,
            readable: false,
            pending: Pending {
                request: true,
                ..Pending::default()
            },
            closed_here: 0,
            closed_there: 0,
            peer_alloc: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            backlog: VecDeque::new(),
        }
    }

    /// The host's end.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The host's socket has data, or its end has come.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// There is something to tell the guest, and it would have room for it.
    pub fn wants_to_send(&self) -> bool {
        self.pending != Pending::default() || self.may_read()
    }

    /// Neither side has anything to say any more.
    pub fn finished(&self) -> bool {
        self.closed_there == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && self.backlog.is_empty()
    }

    /// The guest's end is gone. True if data that came before its end still waits for the host
    /// program: Linux resets a stream whose close was not answered within 8 seconds, however slowly
    /// the other side reads.
    pub fn abandoned(&mut self) -> bool {
        let ended = self.closed_there & SHUTDOWN_SEND != 0;
        self.closed_there = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        ended && !self.backlog.is_empty()
    }

    fn may_read(&self) -> bool {
        self.open
            && self.readable
            && self.closed_here & SHUTDOWN_SEND == 0
            && self.closed_there & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// How much the guest can take. A guest that claims to have forwarded more than it was sent
    /// only hurts itself.
    fn credit(&self) -> u32 {
        self.peer_alloc
            .saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// The next packet for the guest: its operation, its flags, and how much data went into
    /// `data`. None if there is nothing to say after all.
    pub fn next_packet(
        &mut self,
        data: &mut Buffers<'_>,
    ) -> Result<Option<(u16, u32, u32)>, Broken> {
        if std::mem::take(&mut self.pending.request) {
            return Ok(Some((op::REQUEST, 0, 0)));
        }
        if self.may_read() {
            let bytes = self.read(data)?;
            if bytes > 0 {
                return Ok(Some((op::RW, 0, bytes)));
            }
        }
        let flags = std::mem::take(&mut self.pending.shutdown);
        if flags != 0 {
            return Ok(Some((op::SHUTDOWN, flags, 0)));
        }
        if self.pending.credit {
            return Ok(Some((op::CREDIT_UPDATE, 0, 0)));
        }
        Ok(None)
    }

    /// Moves data from the host's socket to the guest's buffers. 0 if there is none.
    fn read(&mut self, data: &mut Buffers<'_>) -> Result<u32, Broken> {
        let room = data.len().min(self.credit() as usize);
        let target = data.split_to(room).map_err(|_| Broken)?;
        if target.is_empty() {
            return Ok(0);
        }
        match target.read_from(&self.stream, None) {
            Ok(0) => {
                self.readable = false;
                self.end_of_input();
                Ok(0)
            }
            Ok(bytes) => {
                // No more than `room`, which is at most u32::MAX.
                self.sent += bytes as u32;
                Ok(bytes as u32)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(_) => Err(Broken),
        }
    }

    fn end_of_input(&mut self) {
        let mut flags = SHUTDOWN_SEND;
        if is_closed(&self.stream) {
            flags |= SHUTDOWN_RECEIVE;
        }
        self.pending.shutdown |= flags & !self.closed_here;
        self.closed_here |= flags;
    }

    /// Fills in what every header tells about our receive buffer.
    pub fn stamp(&mut self, header: &mut Header) {
        self.pending.credit = false;
        self.announced = self.forwarded;
        header.buf_alloc = RECEIVE_BUFFER;
        header.fwd_cnt = self.forwarded.0;
    }

    /// The guest sent a packet other than a reset; `data` is what came with it.
    pub fn receive(&mut self, header: &Header, data: Buffers<'_>) -> Result<(), Broken> {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        match (header.op, self.open) {
            (op::RESPONSE, false) => self.open = true,
            (op::RW, true) => self.take_data(data)?,
            (op::SHUTDOWN, true) => self.close_there(header.flags)?,
            (op::CREDIT_UPDATE, true) => {}
            (op::CREDIT_REQUEST, true) => self.pending.credit = true,
            _ => return Err(Broken),
        }
        Ok(())
    }

    fn take_data(&mut self, mut data: Buffers<'_>) -> Result<(), Broken> {
        if self.closed_there & SHUTDOWN_SEND != 0
            || self.backlog.len() + data.len() > RECEIVE_BUFFER as usize
        {
            return Err(Broken);
        }
        if self.backlog.is_empty() {
            let written = match data.write_to(&self.stream, None) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Broken),
            };
            data.split_to(written).map_err(|_| Broken)?;
            self.forward(written);
        }
        let start = self.backlog.len();
        self.backlog.resize(start + data.len(), 0);
        let (front, back) = self.backlog.as_mut_slices();
        let in_front = start.min(front.len());
        data.read(&mut front[in_front..]);
        data.read(&mut back[start - in_front..]);
        Ok(())
    }

    /// The host's socket has room again.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while !self.backlog.is_empty() {
            match (&self.stream).write(self.backlog.as_slices().0) {
                Ok(written) => {
                    self.backlog.drain(..written);
                    self.forward(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        }
        self.pass_on_end()
    }

    fn forward(&mut self, bytes: usize) {
        self.forwarded += bytes as u32;
        self.pending.credit |= (self.forwarded - self.announced).0 >= CREDIT_STEP;
    }

    fn close_there(&mut self, flags: u32) -> Result<(), Broken> {
        self.closed_there |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.closed_there & SHUTDOWN_RECEIVE != 0 {
            shut(&self.stream, Shutdown::Read)?;
        }
        self.pass_on_end()
    }

    fn pass_on_end(&mut self) -> Result<(), Broken> {
        if self.closed_there & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            shut(&self.stream, Shutdown::Write)?;
        }
        Ok(())
    }
}

fn shut(stream: &UnixStream, how: Shutdown) -> Result<(), Broken> {
    match stream.shutdown(how) {
        // The host's end went first.
        Err(error) if error.kind() != ErrorKind::NotConnected => Err(Broken),
        _ => Ok(()),
    }
}

/// The host's program closed its end, rather than only ending what it sends.
fn is_closed(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Accepts what waits on a listener, as a stream that does not block.
pub fn accept(listener: &std::os::unix::net::UnixListener) -> io::Result<Option<UnixStream>> {
    use rustix::net::{SocketFlags, accept_with};
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(stream) => Ok(Some(stream.into())),
        Err(error) if error == rustix::io::Errno::AGAIN => Ok(None),
        // The program gave up while it waited.
        Err(error) if error == rustix::io::Errno::CONNABORTED => Ok(None),
        Err(error) => Err(error.into()),
    }
}
