//! Requests that are answered later than they arrive: the device keeps the request's place in its
//! ring, and whoever knows the answer sends it from any thread.
//!
//! The guest's memory may change while a request is kept, so its buffers are found again and
//! validated when the answer is written.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::fds::borrow_eventfd;

/// The most requests that are kept at once. A guest that makes the same descriptors available again
/// and again could otherwise have the VMM remember any number of them. Those that wait also take
/// room in the ring, and half of it stays for the others.
pub const MAX_KEPT: usize = 128;

/// The answer to a request: what follows its header, or an error.
pub type Reply = Result<Vec<u8>, Errno>;

/// Makes whoever holds the ticket of a request answer it soon, or drop the ticket.
pub type Cancel = Box<dyn FnOnce() + Send>;

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub queue: usize,
    /// The first descriptor of its chain.
    pub head: u16,
    /// The guest's number for it.
    pub unique: u64,
}

struct Kept {
    origin: Origin,
    cancel: Option<Cancel>,
}

/// The requests that are kept. They belong to the device; the tickets go to other threads.
pub struct Deferred {
    kept: BTreeMap<u64, Kept>,
    next_id: u64,
    replies: Arc<Replies>,
}

/// The replies that have not been written to the guest yet.
struct Replies {
    ready: Mutex<Vec<(u64, Reply)>>,
    event: EventFd,
}

impl Deferred {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kept: BTreeMap::new(),
            next_id: 0,
            replies: Arc::new(Replies {
                ready: Mutex::default(),
                event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            }),
        })
    }

    /// A descriptor that is readable while there are replies to take.
    pub fn fd(&self) -> BorrowedFd<'_> {
        borrow_eventfd(&self.replies.event)
    }

    /// Keeps a request and returns the ticket with which it is answered, unless [`MAX_KEPT`] are
    /// kept already.
    pub fn keep(&mut self, origin: Origin) -> Option<Ticket> {
        if self.kept.len() >= MAX_KEPT {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        let cancel = None;
        self.kept.insert(id, Kept { origin, cancel });
        Some(Ticket {
            id,
            replies: Some(Arc::clone(&self.replies)),
        })
    }

    /// Where the requests that are kept came from, in the order in which they came.
    pub fn kept(&self) -> impl Iterator<Item = Origin> {
        self.kept.values().map(|kept| kept.origin)
    }

    /// Wakes the device up, as a reply does.
    pub fn wake(&self) {
        self.replies.wake();
    }

    /// Has `cancel` called when the guest interrupts the request with this ticket's id, and when
    /// the device is reset.
    pub fn cancel_with(&mut self, id: u64, cancel: Cancel) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.cancel = Some(cancel);
        }
    }

    /// Keeps a request no longer: it is answered in another way. Its ticket has no effect any more.
    pub fn forget(&mut self, id: u64) {
        self.kept.remove(&id);
    }

    /// The guest no longer waits for the request with this number, and wants its answer now.
    pub fn interrupt(&mut self, unique: u64) {
        let cancel = self
            .kept
            .values_mut()
            .find(|kept| kept.origin.unique == unique)
            .and_then(|kept| kept.cancel.take());
        if let Some(cancel) = cancel {
            cancel();
        }
    }

    /// Cancels every request and forgets it; answers that still come are dropped.
    pub fn reset(&mut self) {
        for (_, kept) in std::mem::take(&mut self.kept) {
            if let Some(cancel) = kept.cancel {
                cancel();
            }
        }
    }

    /// Takes the replies that have come, with the places of their requests.
    pub fn take_replies(&mut self) -> Vec<(Origin, Reply)> {
        // Empty only if another call has taken the replies already.
        let _ = self.replies.event.read();
        let ready = std::mem::take(&mut *self.replies.lock());
        ready
            .into_iter()
            .filter_map(|(id, reply)| Some((self.kept.remove(&id)?.origin, reply)))
            .collect()
    }
}

impl Replies {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Reply)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, id: u64, reply: Reply) {
        self.lock().push((id, reply));
        self.wake();
    }

    fn wake(&self) {
        // A write fails only when the counter is full, and then the event is pending.
        let _ = self.event.write(1);
    }
}

/// The duty to answer a request. A ticket that is dropped answers EINTR, after which the guest's
/// kernel tries again or lets the program see the signal.
pub struct Ticket {
    id: u64,
    replies: Option<Arc<Replies>>,
}

impl Ticket {
    /// The ticket's number, for [`Deferred::cancel_with`].
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn answer(mut self, reply: Reply) {
        if let Some(replies) = self.replies.take() {
            replies.send(self.id, reply);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(replies) = self.replies.take() {
            replies.send(self.id, Err(Errno::INTR));
        }
    }
}
