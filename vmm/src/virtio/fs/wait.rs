//! Threads that wait for a lock, one for each, so that a lock that is held for long keeps no other
//! request from being served.
//!
//! Nothing but a signal ends such a wait before the lock is free. The signal's handler does
//! nothing; the system call ends with EINTR, and the thread sees that it is cancelled.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::deferred::{Deferred, Origin, Ticket};
use super::locks::Wanted;
use crate::threads;

/// The most locks that are waited for at once. Each takes a thread and a descriptor, and a guest
/// may have as many programs that wait as it likes.
pub const MAX_WAITERS: usize = 64;

/// How long a cancelled thread has to begin its system call, or to leave it, before the next
/// signal.
const RESEND: Duration = Duration::from_millis(1);

/// How often a signal is sent to a thread that does not end. A host so busy that a thread does not
/// run for that long leaves it to end when it gets the lock.
const MAX_SIGNALS: u32 = 200;

/// Counts the threads that wait.
pub struct Waiters(Arc<()>);

impl Waiters {
    /// Installs the handler of the signal, so it must run before the system call filter applies.
    pub fn new() -> io::Result<Self> {
        install_handler()?;
        Ok(Self(Arc::new(())))
    }

    /// Keeps the request, and waits for the lock in a thread that answers it. ENOLCK if too many
    /// wait already.
    pub fn start(
        &self,
        deferred: &mut Deferred,
        origin: Origin,
        file: OwnedFd,
        wanted: Wanted,
    ) -> Result<(), Errno> {
        if Arc::strong_count(&self.0) > MAX_WAITERS {
            return Err(Errno::NOLCK);
        }
        let place = Arc::clone(&self.0);
        let ticket = deferred.keep(origin).ok_or(Errno::NOLCK)?;
        let id = ticket.id();
        let waiter = Arc::new(Waiter::default());
        let of_thread = Arc::clone(&waiter);
        let work = move || {
            of_thread.run(&file, &wanted, ticket);
            drop(place);
        };
        if let Err(error) = threads::spawn("lock".to_owned(), work) {
            log::warn!("cannot wait for a lock: {error}");
            // The ticket was dropped with the thread's work.
            deferred.forget(id);
            return Err(Errno::NOLCK);
        }
        deferred.cancel_with(id, Box::new(move || waiter.cancel()));
        Ok(())
    }
}

/// A thread that waits.
#[derive(Default)]
struct Waiter {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Set while the thread waits: from before its system call until after it.
    thread: Option<libc::pthread_t>,
    ended: bool,
    cancelled: bool,
}

impl Waiter {
    fn run(&self, file: &OwnedFd, wanted: &Wanted, ticket: Ticket) {
        self.lock().thread = Some(current_thread());
        let result = loop {
            if self.lock().cancelled {
                break Err(Errno::INTR);
            }
            match wanted.wait(file) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        let mut state = self.lock();
        (state.thread, state.ended) = (None, true);
        drop(state);
        self.ended.notify_all();
        ticket.answer(result.map(|()| Vec::new()));
    }

    /// Ends the wait. A signal that comes between the thread's look at `cancelled` and its system
    /// call is lost, so it is sent until the thread has seen it.
    fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        for _ in 0..MAX_SIGNALS {
            if state.ended {
                return;
            }
            if let Some(thread) = state.thread {
                interrupt(thread);
            }
            let waited = self.ended.wait_timeout(state, RESEND);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        log::warn!("a thread that waits for a lock does not end");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signal() -> libc::c_int {
    // The first one kicks vCPUs.
    libc::SIGRTMIN() + 1
}

#[expect(unsafe_code, reason = "sigaction")]
fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    // SAFETY: the structure is initialized: no flags, above all not SA_RESTART, and an empty mask.
    // The handler does nothing, so it may run at any point of any thread.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal(), &action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[expect(unsafe_code, reason = "pthread_self")]
fn current_thread() -> libc::pthread_t {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::pthread_self() }
}

/// Sends the signal to a thread whose state is locked and says that it has not ended.
#[expect(unsafe_code, reason = "pthread_kill")]
fn interrupt(thread: libc::pthread_t) {
    // SAFETY: the thread takes itself out of its state before it ends, and the caller holds the
    // state's lock.
    unsafe { libc::pthread_kill(thread, signal()) };
}
