//! A stream between a host program and a guest program, and its flow control.
//!
//! ```text
//!            REQUEST sent            RESPONSE
//! accepted ───────────────> Opening ──────────> Open ──> (removed)
//!                              └── RST ──> (removed)  RST by either side, or both directions are
//!                                                     shut down
//! ```
//!
//! Data for the guest stays in the host's socket until the guest has room for it. Data from the
//! guest waits in `backlog`, which never exceeds [`RECEIVE_BUFFER`], until the host program reads.
//! So a slow reader on one side stops the writer on the other, and no other buffer grows.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::spec::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::virtio::chain::Buffers;

/// The receive buffer that is announced to the guest as buf_alloc, in bytes. It bounds the memory
/// that the guest can make this process allocate per connection.
pub const RECEIVE_BUFFER: u32 = 256 * 1024;

/// A credit update is sent when this many bytes were forwarded since the last one: often enough
/// never to stop a writer whose reader keeps up.
const CREDIT_STEP: u32 = RECEIVE_BUFFER / 4;

/// The guest violated the protocol on this connection, or the host's socket failed. The device
/// answers with a reset.
#[derive(Debug)]
pub struct Broken;

/// Control packets that were not sent yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    request: bool,
    credit: bool,
    /// The flags of a SHUTDOWN; 0 for none.
    shutdown: u32,
}

#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    pub guest_port: u32,
    /// The connection is in the device's queue of streams that have a packet for the guest.
    pub is_queued: bool,
    open: bool,
    /// The host's socket may have data for the guest.
    readable: bool,
    pending: Pending,
    /// The directions that this side has shut down, as SHUTDOWN flags.
    local_shutdown: u32,
    /// The directions that the guest has shut down, as SHUTDOWN flags.
    peer_shutdown: u32,
    /// The guest's buf_alloc and fwd_cnt.
    peer_alloc: u32,
    peer_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest, modulo 2^32.
    sent: Wrapping<u32>,
    /// Bytes from the guest that were written to the host's socket, modulo 2^32.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that was last sent to the guest.
    announced: Wrapping<u32>,
    /// Bytes from the guest that the host's socket had no room for.
    backlog: VecDeque<u8>,
    /// The host program has been told that nothing more comes. To tell it again would be an event
    /// on the socket, and so another round of the device's thread, without end.
    output_is_shut_down: bool,
}

impl Connection {
    /// A connection that the guest does not know yet. `stream` is nonblocking.
    pub fn new(stream: UnixStream, guest_port: u32) -> Self {
        Self {
            stream,
            guest_port,
            is_queued: true,
            open: false,
            readable: false,
            pending: Pending {
                request: true,
                ..Pending::default()
            },
            local_shutdown: 0,
            peer_shutdown: 0,
            peer_alloc: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            backlog: VecDeque::new(),
            output_is_shut_down: false,
        }
    }

    /// Notes that the host's socket has data or was closed.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether there is a packet for the guest, and the guest has credit for it.
    pub fn wants_to_send(&self) -> bool {
        self.pending != Pending::default() || self.may_read()
    }

    /// Whether both directions are shut down and all data has arrived.
    pub fn is_finished(&self) -> bool {
        self.peer_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && self.backlog.is_empty()
    }

    /// Handles a reset by the guest. True if data that came before the guest's shutdown still waits
    /// for the host program: Linux resets a stream whose close was not answered within 8 seconds,
    /// however slowly the other side reads.
    pub fn handle_reset(&mut self) -> bool {
        let had_shut_down = self.peer_shutdown & SHUTDOWN_SEND != 0;
        self.peer_shutdown = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        had_shut_down && !self.backlog.is_empty()
    }

    fn may_read(&self) -> bool {
        self.open
            && self.readable
            && self.local_shutdown & SHUTDOWN_SEND == 0
            && self.peer_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// The free bytes of the guest's receive buffer. A guest that claims to have forwarded more
    /// than it was sent harms only itself.
    fn credit(&self) -> u32 {
        self.peer_alloc
            .saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// The next packet for the guest: its operation, its flags, and the length of its data, which
    /// is copied to `data`. None if there is no packet.
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

    /// Moves data from the host's socket to the guest's buffers. Returns 0 if there is none.
    fn read(&mut self, data: &mut Buffers<'_>) -> Result<u32, Broken> {
        let room = data.len().min(self.credit() as usize);
        let target = data.split_to(room).map_err(|_| Broken)?;
        if target.is_empty() {
            return Ok(0);
        }
        match target.read_from(&self.stream, None) {
            Ok(0) => {
                self.readable = false;
                self.handle_end_of_input();
                Ok(0)
            }
            Ok(bytes) => {
                // At most `room`, which fits u32.
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

    fn handle_end_of_input(&mut self) {
        let mut flags = SHUTDOWN_SEND;
        if is_closed(&self.stream) {
            flags |= SHUTDOWN_RECEIVE;
        }
        self.pending.shutdown |= flags & !self.local_shutdown;
        self.local_shutdown |= flags;
    }

    /// Fills in the header's fields about this side's receive buffer.
    pub fn set_credit(&mut self, header: &mut Header) {
        self.pending.credit = false;
        self.announced = self.forwarded;
        header.buf_alloc = RECEIVE_BUFFER;
        header.fwd_cnt = self.forwarded.0;
    }

    /// Handles a packet of the guest other than a reset, with its data.
    pub fn receive(&mut self, header: &Header, data: Buffers<'_>) -> Result<(), Broken> {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        match (header.op, self.open) {
            (op::RESPONSE, false) => self.open = true,
            (op::RW, true) => self.receive_data(data)?,
            (op::SHUTDOWN, true) => self.handle_shutdown(header.flags)?,
            (op::CREDIT_UPDATE, true) => {}
            (op::CREDIT_REQUEST, true) => self.pending.credit = true,
            _ => return Err(Broken),
        }
        Ok(())
    }

    fn receive_data(&mut self, mut data: Buffers<'_>) -> Result<(), Broken> {
        if self.peer_shutdown & SHUTDOWN_SEND != 0
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
            self.count_forwarded(written);
        }
        let start = self.backlog.len();
        self.backlog.resize(start + data.len(), 0);
        let (front, back) = self.backlog.as_mut_slices();
        let in_front = start.min(front.len());
        data.read(&mut front[in_front..]);
        data.read(&mut back[start - in_front..]);
        Ok(())
    }

    /// Writes the backlog to the host's socket, which has room again.
    pub fn flush(&mut self) -> Result<(), Broken> {
        while !self.backlog.is_empty() {
            match (&self.stream).write(self.backlog.as_slices().0) {
                Ok(written) => {
                    self.backlog.drain(..written);
                    self.count_forwarded(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        }
        self.shut_down_if_flushed()
    }

    fn count_forwarded(&mut self, bytes: usize) {
        self.forwarded += bytes as u32;
        self.pending.credit |= (self.forwarded - self.announced).0 >= CREDIT_STEP;
    }

    fn handle_shutdown(&mut self, flags: u32) -> Result<(), Broken> {
        self.peer_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.peer_shutdown & SHUTDOWN_RECEIVE != 0 {
            shut_down(&self.stream, Shutdown::Read)?;
        }
        self.shut_down_if_flushed()
    }

    fn shut_down_if_flushed(&mut self) -> Result<(), Broken> {
        let has_ended = self.peer_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        if has_ended && !self.output_is_shut_down {
            shut_down(&self.stream, Shutdown::Write)?;
            self.output_is_shut_down = true;
        }
        Ok(())
    }
}

fn shut_down(stream: &UnixStream, how: Shutdown) -> Result<(), Broken> {
    match stream.shutdown(how) {
        // The host program closed its end first.
        Err(error) if error.kind() != ErrorKind::NotConnected => Err(Broken),
        _ => Ok(()),
    }
}

/// Whether the host program closed its socket, rather than only shut down its sending direction.
fn is_closed(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Accepts a connection as a nonblocking stream. None if none waits.
pub fn accept(listener: &std::os::unix::net::UnixListener) -> io::Result<Option<UnixStream>> {
    use rustix::net::{SocketFlags, accept_with};
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(stream) => Ok(Some(stream.into())),
        Err(error) if error == rustix::io::Errno::AGAIN => Ok(None),
        // The program closed the connection while it waited.
        Err(error) if error == rustix::io::Errno::CONNABORTED => Ok(None),
        Err(error) => Err(error.into()),
    }
}
