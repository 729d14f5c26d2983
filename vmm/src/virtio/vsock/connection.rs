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
//!
//! A stream of a machine that was restored has no host program at first. It goes on when one claims
//! it, and the guest notices nothing.

mod saved;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

pub use saved::SavedConnection;

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

/// The length of a stream's id, with which the host program begins.
const ID_BYTES: usize = 8;

/// Control packets that were not sent yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    request: bool,
    credit: bool,
    /// The flags of a SHUTDOWN; 0 for none.
    shutdown: u32,
}

#[derive(Debug)]
pub struct Connection {
    /// None in a restored machine until a host program claims the stream.
    stream: Option<UnixStream>,
    /// The connection is in the device's queue of streams that have a packet for the guest.
    pub is_queued: bool,
    /// The host's socket may have data for the guest.
    readable: bool,
    /// The host program has been told that nothing more comes. To tell it again would be an event
    /// on the socket, and so another round of the device's thread, without end.
    output_is_shut_down: bool,
    state: State,
}

/// What of a connection is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    guest_port: u32,
    /// The id that the host program has begun with, for the guest and for who claims the stream.
    id: Id,
    open: bool,
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
    /// Bytes for the guest that were taken from the host's socket. Sent before what is there.
    input: VecDeque<u8>,
    /// Nothing follows `input`: the flags of the SHUTDOWN.
    input_end: u32,
}

/// The id of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Id {
    /// The streams of this port have none.
    None,
    Awaited,
    Known([u8; ID_BYTES]),
}

impl Connection {
    /// A connection that the guest does not know yet. `stream` is nonblocking. With `has_id` the
    /// guest learns of it once its id has come.
    pub fn new(stream: UnixStream, guest_port: u32, has_id: bool) -> Self {
        let state = State {
            guest_port,
            id: if has_id { Id::Awaited } else { Id::None },
            open: false,
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
            input: VecDeque::new(),
            input_end: 0,
        };
        Self {
            stream: Some(stream),
            ..Self::of(state)
        }
    }

    fn of(state: State) -> Self {
        Self {
            stream: None,
            is_queued: false,
            readable: false,
            output_is_shut_down: false,
            state,
        }
    }

    pub fn guest_port(&self) -> u32 {
        self.state.guest_port
    }

    /// The id of a stream that waits to be claimed.
    pub fn unclaimed_id(&self) -> Option<[u8; ID_BYTES]> {
        match self.state.id {
            Id::Known(id) if self.stream.is_none() => Some(id),
            _ => None,
        }
    }

    /// The host program's socket.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// How many bytes of the guest's wait for the host program.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn backlog(&self) -> usize {
        self.state.backlog.len()
    }

    /// Whether no host program has the stream.
    pub fn is_unclaimed(&self) -> bool {
        self.stream.is_none()
    }

    /// Reads the id with which the host program begins. None if it has not come, or if there is
    /// none to come.
    pub fn take_id(&mut self) -> Result<Option<[u8; ID_BYTES]>, Broken> {
        let (Some(stream), Id::Awaited) = (&self.stream, self.state.id) else {
            return Ok(None);
        };
        let mut buffer = [0; ID_BYTES];
        let room = &mut buffer[self.state.input.len().min(ID_BYTES)..];
        match (&mut &*stream).read(room) {
            Ok(0) => return Err(Broken),
            Ok(bytes) => self.state.input.extend(&room[..bytes]),
            Err(error) if is_temporary(&error) => return Ok(None),
            Err(_) => return Err(Broken),
        }
        let input = self.state.input.make_contiguous();
        let Ok(id) = <[u8; ID_BYTES]>::try_from(&*input) else {
            // The rest is an event of its own.
            return Ok(None);
        };
        self.state.id = Id::Known(id);
        Ok(Some(id))
    }

    /// Gives this stream to the host program of another, which has begun with its id.
    pub fn claim(&mut self, by: Self) -> Result<(), Broken> {
        self.stream = by.stream;
        self.readable = true;
        self.shut_input_down()?;
        self.flush()
    }

    /// Notes that the host's socket has data or was closed.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether there is a packet for the guest, and the guest has credit for it.
    pub fn wants_to_send(&self) -> bool {
        let state = &self.state;
        state.id != Id::Awaited && (state.pending != Pending::default() || self.may_read())
    }

    /// Whether both directions are shut down and all data has arrived.
    pub fn is_finished(&self) -> bool {
        let state = &self.state;
        state.peer_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && state.backlog.is_empty()
    }

    /// Handles a reset by the guest. True if data that came before the guest's shutdown still waits
    /// for the host program: Linux resets a stream whose close was not answered within 8 seconds,
    /// however slowly the other side reads.
    pub fn handle_reset(&mut self) -> bool {
        let had_shut_down = self.state.peer_shutdown & SHUTDOWN_SEND != 0;
        self.state.peer_shutdown = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        had_shut_down && !self.state.backlog.is_empty()
    }

    fn may_read(&self) -> bool {
        let state = &self.state;
        let has_input = self.readable || !state.input.is_empty() || state.input_end != 0;
        state.open
            && has_input
            && state.local_shutdown & SHUTDOWN_SEND == 0
            && state.peer_shutdown & SHUTDOWN_RECEIVE == 0
            && state.credit() > 0
    }

    /// The next packet for the guest: its operation, its flags, and the length of its data, which
    /// is copied to `data`. None if there is no packet.
    pub fn next_packet(
        &mut self,
        data: &mut Buffers<'_>,
    ) -> Result<Option<(u16, u32, u32)>, Broken> {
        if std::mem::take(&mut self.state.pending.request) {
            return Ok(Some((op::REQUEST, 0, 0)));
        }
        if self.may_read() {
            let bytes = self.read(data)?;
            if bytes > 0 {
                return Ok(Some((op::RW, 0, bytes)));
            }
        }
        let flags = std::mem::take(&mut self.state.pending.shutdown);
        if flags != 0 {
            return Ok(Some((op::SHUTDOWN, flags, 0)));
        }
        if self.state.pending.credit {
            return Ok(Some((op::CREDIT_UPDATE, 0, 0)));
        }
        Ok(None)
    }

    /// Moves data from the host's socket to the guest's buffers. Returns 0 if there is none.
    fn read(&mut self, data: &mut Buffers<'_>) -> Result<u32, Broken> {
        let room = data.len().min(self.state.credit() as usize);
        let mut target = data.split_to(room).map_err(|_| Broken)?;
        if target.is_empty() {
            return Ok(0);
        }
        if !self.state.input.is_empty() {
            let (front, _) = self.state.input.as_slices();
            let bytes = target.write(front);
            self.state.input.drain(..bytes);
            return Ok(self.count_sent(bytes));
        }
        if self.state.input_end != 0 {
            let flags = std::mem::take(&mut self.state.input_end);
            self.state.end_input(flags);
            return Ok(0);
        }
        let Some(stream) = &self.stream else {
            return Ok(0);
        };
        match target.read_from(stream, None) {
            Ok(0) => {
                self.readable = false;
                let flags = end_of_input(stream);
                self.state.end_input(flags);
                Ok(0)
            }
            Ok(bytes) => Ok(self.count_sent(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(_) => Err(Broken),
        }
    }

    /// Counts bytes that were sent to the guest: at most the room in its buffer, which fits u32.
    fn count_sent(&mut self, bytes: usize) -> u32 {
        self.state.sent += bytes as u32;
        bytes as u32
    }

    /// Fills in the header's fields about this side's receive buffer.
    pub fn set_credit(&mut self, header: &mut Header) {
        self.state.pending.credit = false;
        self.state.announced = self.state.forwarded;
        header.buf_alloc = RECEIVE_BUFFER;
        header.fwd_cnt = self.state.forwarded.0;
    }

    /// Handles a packet of the guest other than a reset, with its data.
    pub fn receive(&mut self, header: &Header, data: Buffers<'_>) -> Result<(), Broken> {
        self.state.peer_alloc = header.buf_alloc;
        self.state.peer_forwarded = Wrapping(header.fwd_cnt);
        match (header.op, self.state.open) {
            (op::RESPONSE, false) => self.state.open = true,
            (op::RW, true) => self.receive_data(data)?,
            (op::SHUTDOWN, true) => self.handle_shutdown(header.flags)?,
            (op::CREDIT_UPDATE, true) => {}
            (op::CREDIT_REQUEST, true) => self.state.pending.credit = true,
            _ => return Err(Broken),
        }
        Ok(())
    }

    fn receive_data(&mut self, mut data: Buffers<'_>) -> Result<(), Broken> {
        if self.state.peer_shutdown & SHUTDOWN_SEND != 0
            || self.state.backlog.len() + data.len() > RECEIVE_BUFFER as usize
        {
            return Err(Broken);
        }
        if let (Some(stream), true) = (&self.stream, self.state.backlog.is_empty()) {
            let written = match data.write_to(stream, None) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Broken),
            };
            data.split_to(written).map_err(|_| Broken)?;
            self.state.count_forwarded(written);
        }
        let backlog = &mut self.state.backlog;
        let start = backlog.len();
        backlog.resize(start + data.len(), 0);
        let (front, back) = backlog.as_mut_slices();
        let in_front = start.min(front.len());
        data.read(&mut front[in_front..]);
        data.read(&mut back[start - in_front..]);
        Ok(())
    }

    /// Writes the backlog to the host's socket, which has room again.
    pub fn flush(&mut self) -> Result<(), Broken> {
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        while !self.state.backlog.is_empty() {
            match (&mut &*stream).write(self.state.backlog.as_slices().0) {
                Ok(written) => {
                    self.state.backlog.drain(..written);
                    self.state.count_forwarded(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        }
        self.shut_down_if_flushed()
    }

    fn handle_shutdown(&mut self, flags: u32) -> Result<(), Broken> {
        self.state.peer_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        self.shut_input_down()?;
        self.shut_down_if_flushed()
    }

    /// Tells the host program if the guest receives no more.
    fn shut_input_down(&self) -> Result<(), Broken> {
        match &self.stream {
            Some(stream) if self.state.peer_shutdown & SHUTDOWN_RECEIVE != 0 => {
                shut_down(stream, Shutdown::Read)
            }
            _ => Ok(()),
        }
    }

    fn shut_down_if_flushed(&mut self) -> Result<(), Broken> {
        let has_ended =
            self.state.peer_shutdown & SHUTDOWN_SEND != 0 && self.state.backlog.is_empty();
        if let (Some(stream), true, false) = (&self.stream, has_ended, self.output_is_shut_down) {
            shut_down(stream, Shutdown::Write)?;
            self.output_is_shut_down = true;
        }
        Ok(())
    }
}

impl State {
    /// The free bytes of the guest's receive buffer. A guest that claims to have forwarded more
    /// than it was sent harms only itself.
    fn credit(&self) -> u32 {
        self.peer_alloc
            .saturating_sub((self.sent - self.peer_forwarded).0)
    }

    /// Nothing more comes from the host program: the flags of a SHUTDOWN.
    fn end_input(&mut self, flags: u32) {
        self.pending.shutdown |= flags & !self.local_shutdown;
        self.local_shutdown |= flags;
    }

    fn count_forwarded(&mut self, bytes: usize) {
        self.forwarded += bytes as u32;
        self.pending.credit |= (self.forwarded - self.announced).0 >= CREDIT_STEP;
    }
}

/// The flags of a SHUTDOWN after the end of what the host program has written.
fn end_of_input(stream: &UnixStream) -> u32 {
    match is_closed(stream) {
        true => SHUTDOWN_SEND | SHUTDOWN_RECEIVE,
        false => SHUTDOWN_SEND,
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
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
