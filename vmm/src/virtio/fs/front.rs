//! What stands before virtiofsd's server: requests that it does not serve, or not as a guest needs
//! it, are handled here. A handler answers at once, or keeps the request and answers later, or has
//! virtiofsd answer after it.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use virtiofsd::fuse::{AttrOut, EntryOut, InHeader, InterruptIn, OpenIn, OpenOut};
use vm_memory::ByteValued;

use super::close_to_open::CloseToOpen;
use super::deferred::{Deferred, Origin, Reply};
use super::files::Files;
use super::frequent;
use super::locks::Locks;
use super::message::{self, errno, opcode, take};
use super::slow::{Slow, Work};
use super::state::INIT_BYTES;
use super::watches::Watches;
use super::{ioctl, statx};
use crate::virtio::chain::{Buffers, Chain};

/// FUSE_OPEN_KILL_SUIDGID
const OPEN_KILL_SUIDGID: u32 = 1;

/// Of our guest kernel: see [`CloseToOpen::open_late`].
const OPEN_CACHED: u32 = 1 << 31;

/// What becomes of a request.
pub enum Outcome {
    Answered(Reply),
    /// The guest expects no answer.
    Silent,
    /// The request is kept in [`Deferred`].
    Later,
    /// The request is virtiofsd's.
    Passed,
}

/// What is left to do of a state that was restored.
#[derive(Default)]
pub struct Restored {
    /// The queue and the first descriptor of requests that were kept, to be executed again.
    pub kept: Vec<(usize, u16)>,
    /// The queues may hold requests of which no notification comes any more.
    pub is_new: bool,
}

/// The most interrupts that wait, more than requests can. A guest whose requests never end would
/// otherwise have any number of them remembered.
const MAX_INTERRUPTED: usize = 512;

pub struct Front {
    pub deferred: Deferred,
    /// The numbers of interrupted requests. The driver made them available before it interrupted
    /// them, so they are interrupted as soon as the request queues have been processed.
    pub interrupted: Vec<u64>,
    pub locks: Locks,
    pub watches: Watches,
    pub slow: Slow,
    /// What followed the header of the last INIT, if the file system is mounted.
    pub init: Option<Vec<u8>>,
    pub restored: Restored,
    fs: Arc<Files>,
    opens: CloseToOpen,
}

impl Front {
    pub fn new(fs: Arc<Files>, opens: CloseToOpen) -> io::Result<Self> {
        Ok(Self {
            deferred: Deferred::new()?,
            interrupted: Vec::new(),
            locks: Locks::new(Arc::clone(&fs))?,
            slow: Slow::new(Arc::clone(&fs)),
            watches: Watches::new(Arc::clone(&fs)),
            init: None,
            restored: Restored::default(),
            fs,
            opens,
        })
    }

    /// Whether [`Self::handle`] handles this operation. If not, the request need not be read.
    pub fn handles(&self, header: &InHeader) -> bool {
        match header.opcode {
            opcode::FLUSH => !self.locks.is_empty(),
            opcode::INTERRUPT | opcode::INIT | opcode::DESTROY => true,
            opcode::LOOKUP | opcode::FORGET | opcode::WRITE | opcode::UNLINK => true,
            opcode::RELEASE | opcode::GETLK | opcode::SETLK | opcode::SETLKW => true,
            opcode::OPEN | opcode::STATX | opcode::IOCTL | opcode::TMPFILE => true,
            opcode::WATCH | opcode::EVENTS => true,
            operation => Work::is(operation),
        }
    }

    /// The error of a request that cannot be executed.
    pub fn check(&self, header: &InHeader, chain: &Chain<'_>) -> Result<(), Errno> {
        message::check(header, chain)?;
        match self.fs.lost().contains(header.nodeid) && !message::is_forget(header) {
            // The guest's kernel looks the path up again.
            true => Err(Errno::STALE),
            false => Ok(()),
        }
    }

    /// Handles a request; `body` is what follows its header.
    pub fn handle(&mut self, origin: Origin, header: &InHeader, mut body: Buffers<'_>) -> Outcome {
        let inode = header.nodeid;
        match header.opcode {
            opcode::INTERRUPT => {
                if let Ok(InterruptIn { unique }) = take(&mut body)
                    && self.interrupted.len() < MAX_INTERRUPTED
                {
                    self.interrupted.push(unique);
                }
                Outcome::Silent
            }
            // Another mount of the guest's, or none: the old one's requests are nobody's.
            opcode::INIT | opcode::DESTROY => {
                self.reset();
                self.init = (header.opcode == opcode::INIT).then(|| init_body(&body));
                Outcome::Passed
            }
            opcode::FLUSH => {
                if let Ok(request) = take(&mut body) {
                    self.locks.flush(inode, &request);
                }
                Outcome::Passed
            }
            opcode::FORGET => frequent::forget(&self.opens, header, body),
            opcode::LOOKUP => frequent::lookup(&self.opens, header, body),
            opcode::RELEASE | opcode::UNLINK | opcode::WRITE => self.change(header, body),
            opcode::GETLK => {
                let request = take(&mut body);
                Outcome::Answered(request.and_then(|r| self.locks.get(inode, &r)))
            }
            opcode::SETLK | opcode::SETLKW => match take(&mut body) {
                Ok(request) => {
                    let wait = header.opcode == opcode::SETLKW;
                    let deferred = &mut self.deferred;
                    self.locks.set(deferred, origin, inode, &request, wait)
                }
                Err(error) => Outcome::Answered(Err(error)),
            },
            opcode::OPEN => Outcome::Answered(self.open(header, body)),
            opcode::STATX => {
                let request = take(&mut body);
                Outcome::Answered(request.and_then(|r| statx::get(&self.fs, inode, &r)))
            }
            opcode::TMPFILE => Outcome::Answered(self.create_nameless(header, body)),
            opcode::IOCTL => Outcome::Answered(ioctl::execute(&self.fs, inode, body)),
            opcode::WATCH => Outcome::Answered(
                take::<u64>(&mut body).and_then(|wanted| self.watches.watch(inode, wanted as u32)),
            ),
            opcode::EVENTS => match self.deferred.keep(origin) {
                Some(ticket) => {
                    self.watches.wait(ticket);
                    Outcome::Later
                }
                None => Outcome::Answered(Err(Errno::BUSY)),
            },
            operation => self.defer(origin, header, Work::read(operation, &mut body)),
        }
    }

    /// Executes a frequent request that may change files.
    fn change(&mut self, header: &InHeader, mut body: Buffers<'_>) -> Outcome {
        let outcome = match header.opcode {
            opcode::UNLINK => frequent::unlink(&self.opens, header, body),
            opcode::WRITE => Outcome::Answered(frequent::write(&self.opens, header, body)),
            _ => Outcome::Answered(take(&mut body).and_then(|request| {
                self.locks.release(header.nodeid, &request);
                frequent::release(&self.opens, header, &request)
            })),
        };
        self.watches.executed(header.nodeid);
        outcome
    }

    /// Has a thread do what may take long, unless too many requests are kept already.
    fn defer(&mut self, origin: Origin, header: &InHeader, work: Option<Work>) -> Outcome {
        let Some(work) = work else {
            return Outcome::Passed;
        };
        match self.deferred.keep(origin) {
            Some(ticket) => {
                self.slow.start(*header, work, ticket);
                Outcome::Later
            }
            None => Outcome::Passed,
        }
    }

    /// The answer of FUSE_OPEN, followed by the attributes and a number for the version of the
    /// file, which our guest kernel takes with it.
    fn open(&mut self, header: &InHeader, mut body: Buffers<'_>) -> Reply {
        let request: OpenIn = take(&mut body)?;
        let kill_priv = request.open_flags & OPEN_KILL_SUIDGID != 0;
        let (context, inode) = ((*header).into(), header.nodeid);
        let opened = match request.open_flags & OPEN_CACHED {
            0 => (self.opens).open_with_attributes(context, inode, kill_priv, request.flags),
            _ => self.opens.open_late(context, inode, request.flags),
        };
        // It may have truncated the file.
        self.watches.executed(header.nodeid);
        let opened = opened.map_err(|error| errno(&error))?;
        let out = OpenOut {
            fh: opened.handle.unwrap_or(0),
            open_flags: opened.options.bits(),
            ..OpenOut::default()
        };
        let mut reply = out.as_slice().to_vec();
        if let Some((attr, timeout)) = opened.attributes {
            let attributes = AttrOut {
                attr_valid: timeout.as_secs(),
                attr_valid_nsec: timeout.subsec_nanos(),
                dummy: 0,
                attr,
            };
            reply.extend(attributes.as_slice());
            if let Some(number) = opened.number {
                reply.extend(number.encode().to_ne_bytes());
            }
        }
        Ok(reply)
    }

    pub fn files(&self) -> &Arc<Files> {
        &self.fs
    }

    pub fn opens(&self) -> &CloseToOpen {
        &self.opens
    }

    fn create_nameless(&self, header: &InHeader, mut body: Buffers<'_>) -> Reply {
        let request = take(&mut body)?;
        let made = (self.fs).create_nameless((*header).into(), header.nodeid, &request);
        let (entry, handle) = made.map_err(|error| errno(&error))?;
        let opened = OpenOut {
            fh: handle,
            ..OpenOut::default()
        };
        Ok([EntryOut::from(entry).as_slice(), opened.as_slice()].concat())
    }

    /// Cancels what waits, and forgets every lock and watch; virtiofsd closes the files at the next
    /// INIT.
    pub fn reset(&mut self) {
        self.init = None;
        self.restored = Restored::default();
        self.interrupted.clear();
        self.watches.reset();
        self.deferred.reset();
        self.locks.clear();
    }
}

fn init_body(body: &Buffers<'_>) -> Vec<u8> {
    let mut bytes = vec![0; INIT_BYTES];
    let length = body.peek(&mut bytes);
    bytes.truncate(length);
    bytes
}
