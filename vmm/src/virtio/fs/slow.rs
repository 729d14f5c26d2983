//! Requests that may take as long as a disk does: fsync(2) and its kind, and changes of whole
//! ranges of a file. A few threads execute them, so that they keep no other request from being
//! served. A thread that has nothing to do for a while ends.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::{CopyfilerangeIn, FSYNC_FDATASYNC, FallocateIn, FsyncIn, InHeader, WriteOut};
use vm_memory::ByteValued;

use super::deferred::{Reply, Ticket};
use super::files::Files;
use super::message::{errno, opcode, take};
use crate::threads;
use crate::virtio::chain::Buffers;

/// The most threads. Further requests wait for one of them; a guest that syncs from a thousand
/// threads takes no more of the host.
const MAX_THREADS: usize = 4;

/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(5);

/// A request that may take long.
#[derive(Clone, Copy)]
pub enum Work {
    Sync(FsyncIn),
    SyncDirectory(FsyncIn),
    SyncAll,
    Allocate(FallocateIn),
    Copy(CopyfilerangeIn),
}

impl Work {
    /// Whether requests of this operation may take long.
    pub fn is(operation: u32) -> bool {
        matches!(
            operation,
            opcode::FSYNC
                | opcode::FSYNCDIR
                | opcode::SYNCFS
                | opcode::FALLOCATE
                | opcode::COPY_FILE_RANGE
        )
    }

    /// Reads a request; `None` if it is malformed or another one.
    pub fn read(operation: u32, body: &mut Buffers<'_>) -> Option<Self> {
        match operation {
            opcode::FSYNC => take(body).ok().map(Self::Sync),
            opcode::FSYNCDIR => take(body).ok().map(Self::SyncDirectory),
            opcode::SYNCFS => Some(Self::SyncAll),
            opcode::FALLOCATE => take(body).ok().map(Self::Allocate),
            opcode::COPY_FILE_RANGE => take(body).ok().map(Self::Copy),
            _ => None,
        }
    }

    fn execute(self, files: &Files, header: InHeader) -> io::Result<Vec<u8>> {
        let (context, inode) = (Context::from(header), header.nodeid);
        let data_only = |request: FsyncIn| request.fsync_flags & FSYNC_FDATASYNC != 0;
        match self {
            Self::Sync(r) => files.fsync(context, inode, data_only(r), r.fh)?,
            Self::SyncDirectory(r) => files.fsyncdir(context, inode, data_only(r), r.fh)?,
            Self::SyncAll => files.syncfs(context, inode)?,
            Self::Allocate(r) => {
                files.fallocate(context, inode, r.fh, r.mode, r.offset, r.length)?;
            }
            Self::Copy(r) => {
                let copied = files.copyfilerange(
                    context,
                    inode,
                    r.fh_in,
                    r.off_in,
                    r.nodeid_out,
                    r.fh_out,
                    r.off_out,
                    // The answer has 32 bits; the guest asks again for the rest.
                    r.len.min(MAX_COPY),
                    r.flags,
                )?;
                let out = WriteOut {
                    size: copied as u32,
                    ..WriteOut::default()
                };
                return Ok(out.as_slice().to_vec());
            }
        }
        Ok(Vec::new())
    }
}

/// The most bytes that one request copies.
const MAX_COPY: u64 = 1 << 30;

/// The threads and what waits for them.
pub struct Slow {
    files: Arc<Files>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    /// A thread has nothing more to do.
    finished: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Job {
    header: InHeader,
    work: Work,
    ticket: Ticket,
}

impl Slow {
    pub fn new(files: Arc<Files>) -> Self {
        Self {
            files,
            queue: Arc::default(),
        }
    }

    /// Waits until every request was executed; false if that takes too long.
    pub fn wait_until_idle(&self, patience: Duration) -> bool {
        self.queue.wait_until_idle(patience)
    }

    /// Has a thread execute a request and answer it. The number of tickets bounds the queue.
    pub fn start(&self, header: InHeader, work: Work, ticket: Ticket) {
        let mut state = self.queue.lock();
        state.waiting.push_back(Job {
            header,
            work,
            ticket,
        });
        if state.idle >= state.waiting.len() {
            self.queue.arrived.notify_one();
        } else if state.threads < MAX_THREADS {
            let (files, queue) = (Arc::clone(&self.files), Arc::clone(&self.queue));
            match threads::spawn("fs-slow".to_owned(), move || queue.serve(&files)) {
                Ok(()) => state.threads += 1,
                Err(_) if state.threads == 0 => {
                    let job = state.waiting.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        job.execute(&self.files);
                    }
                }
                Err(_) => {}
            }
        }
    }
}

impl Queue {
    /// Waits until every request was executed; false if that takes too long.
    fn wait_until_idle(&self, patience: Duration) -> bool {
        let is_busy = |state: &mut State| !state.waiting.is_empty() || state.idle < state.threads;
        let waited = (self.finished).wait_timeout_while(self.lock(), patience, is_busy);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

impl Job {
    fn execute(self, files: &Files) {
        let result = self.work.execute(files, self.header);
        let reply: Reply = result.map_err(|error| errno(&error));
        self.ticket.answer(reply);
    }
}

impl Queue {
    fn serve(&self, files: &Files) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                job.execute(files);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            self.finished.notify_all();
            let waited = self.arrived.wait_timeout(state, IDLE);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = again;
            state.idle -= 1;
            if timeout.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                self.finished.notify_all();
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Client;
    use super::*;
    use crate::jail::filter::ThreadKind;

    #[test]
    fn requests_that_take_long_are_answered_by_threads_within_the_filter() {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let handle = guest.open(inode, libc::O_RDWR);
        let filtered = std::thread::spawn(move || {
            ThreadKind::Files.apply().unwrap();
            let sync = FsyncIn {
                fh: handle,
                ..FsyncIn::default()
            };
            let grow = FallocateIn {
                fh: handle,
                length: 100,
                ..FallocateIn::default()
            };
            let copy = CopyfilerangeIn {
                fh_in: handle,
                nodeid_out: inode,
                fh_out: handle,
                off_out: 50,
                len: 4,
                ..CopyfilerangeIn::default()
            };
            for (operation, body, answer) in [
                (opcode::FSYNC, sync.as_slice(), 0),
                (opcode::FALLOCATE, grow.as_slice(), 0),
                (opcode::COPY_FILE_RANGE, copy.as_slice(), 8),
                (opcode::SYNCFS, [0; 8].as_slice(), 0),
            ] {
                let unique = guest.send(operation, inode, body);
                let (answered, bytes) = guest.wait();
                let length = bytes.map(|bytes| bytes.len());
                assert_eq!((answered, length), (unique, Ok(answer)), "{operation}");
            }
            guest
        });
        let guest = filtered.join().unwrap();
        let text = std::fs::read(guest.path("file")).unwrap();
        assert_eq!((text.len(), &text[50..54]), (100, b"text".as_slice()));
    }

    #[test]
    fn an_error_of_the_host_is_the_answer() {
        let mut guest = Client::new();
        let request = FsyncIn {
            fh: 77,
            ..FsyncIn::default()
        };
        let unique = guest.send(opcode::FSYNC, 1, request.as_slice());
        assert_eq!(guest.wait(), (unique, Err(libc::EBADF)));
    }

    #[test]
    fn many_requests_share_a_few_threads() {
        let mut guest = Client::new();
        std::fs::write(guest.path("file"), "text").unwrap();
        let inode = guest.lookup("file").unwrap().nodeid;
        let request = FsyncIn {
            fh: guest.open(inode, libc::O_RDWR),
            ..FsyncIn::default()
        };
        let mut sent: Vec<u64> = (0..8)
            .map(|_| guest.send(opcode::FSYNC, inode, request.as_slice()))
            .collect();
        assert!(guest.driver.device.front.slow.queue.lock().threads <= MAX_THREADS);
        while !sent.is_empty() {
            let (unique, answer) = guest.wait();
            assert_eq!(answer, Ok(Vec::new()));
            sent.retain(|sent| *sent != unique);
        }
    }
}
