//! virtio-fs: a directory of the host as a file system of the guest, section 5.11 of the
//! specification.
//!
//! The file system is virtiofsd's, below a layer that lets the guest keep its page cache (see
//! `close_to_open.rs`); this is the device. Requests are executed one after the other on the
//! device's own thread, which may block and which takes on the identity of the guest's process
//! while it creates a file. `front.rs` handles what virtiofsd does not, and has what may take long
//! done by other threads, which answer later.

mod close_to_open;
mod deferred;
mod fanotify;
mod files;
mod frequent;
mod front;
mod ioctl;
mod lend;
mod locks;
mod lost;
mod message;
mod nameless;
mod nodes;
mod numbers;
mod slow;
mod spec;
mod state;
mod statx;
mod versions;
mod wait;
mod watches;
mod xattrs;

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rvm_protocol::SHARED_CACHE_TIMEOUT;
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::fuse::InHeader;
use virtiofsd::passthrough::{self, CachePolicy, NegotiationMode, PassthroughFs};
use virtiofsd::server::Server;

use self::close_to_open::CloseToOpen;
pub use self::close_to_open::CurrentVersions;
use self::deferred::Origin;
use self::files::Files;
use self::front::{Front, Outcome};
use self::nameless::Nameless;
pub use self::numbers::PORTS as VERSION_PORTS;
use self::spec::{
    AWAITED_QUEUE, CONFIG_BYTES, HIPRIO_QUEUE, PORTS, QUEUE_SIZES, REQUEST_QUEUE, TAG_BYTES,
};
pub use self::spec::{NOTIFY_PORT, VERSION_PORT};
pub use self::state::RemovedFiles;
use super::chain::{Buffers, Chain};
use super::device::{
    Busy, DeviceError, DeviceInfo, DeviceIo, HostFds, Readiness, VirtioDevice, read_config_space,
};
use super::spec::device_id;
use crate::jail::OwnDescriptors;
use crate::memory::GuestMemory;

const NAME: &str = "fs";

/// The device's number for the event of replies to kept requests.
const REPLIES: u32 = 0;

/// The device's number for the event of changes by others.
const CHANGES: u32 = 1;

/// Descriptors that the guest's open files cannot take, for everything else that the process does.
const RESERVED_FDS: u64 = 256;

/// Descriptors that take 8 KiB of the kernel's memory.
const ROOM_FOR_FDS: u64 = 1024;

/// The part of all descriptors that files without a name may take.
const NAMELESS_PART: u64 = 8;

/// Resources that the file server needs from outside the jail.
pub struct ServerResources {
    pub own: OwnDescriptors,
    /// RLIMIT_NOFILE
    pub max_fds: u64,
}

impl ServerResources {
    /// The resources of the calling process.
    pub fn new(own: OwnDescriptors) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            own,
            max_fds: limit.current.unwrap_or(u64::MAX),
        }
    }
}

pub struct Fs {
    config: [u8; CONFIG_BYTES],
    features: u64,
    front: Front,
    server: Server<CloseToOpen>,
    removed: Arc<RemovedFiles>,
    /// See [`OwnDescriptors`].
    infos: File,
    /// The thread has a working directory and a umask of its own.
    fs_is_unshared: bool,
}

impl Fs {
    /// Serves the root directory of the calling process under `tag`, which is cut to 36 bytes.
    pub fn new(resources: ServerResources, tag: &str) -> io::Result<Self> {
        Self::of_directory("/", resources, tag)
    }

    fn of_directory(root: &str, resources: ServerResources, tag: &str) -> io::Result<Self> {
        let OwnDescriptors { files, infos } = resources.own;
        let proc_self_fd = files.try_clone()?;
        make_room_for_files(&proc_self_fd, resources.max_fds);
        let max_nameless = resources.max_fds / NAMELESS_PART;
        let reserved = RESERVED_FDS + max_nameless;
        let fs = PassthroughFs::new(passthrough::Config {
            entry_timeout: SHARED_CACHE_TIMEOUT,
            attr_timeout: SHARED_CACHE_TIMEOUT,
            cache_policy: CachePolicy::Auto,
            root_dir: root.to_owned(),
            xattr: true,
            xattrmap: Some(xattrs::map()?),
            proc_sfd_rawfd: Some(files),
            announce_submounts: true,
            killpriv_v2: true,
            posix_acl: NegotiationMode::Auto,
            allow_direct_io: true,
            allow_mmap: true,
            guest_fd_limit: resources.max_fds.saturating_sub(reserved),
            ..Default::default()
        })?;
        fs.open_root_node()?;
        let nameless = Nameless::new(
            proc_self_fd,
            usize::try_from(max_nameless).unwrap_or(usize::MAX),
            xattrs::map()?,
        );
        let fs = Arc::new(Files::new(fs, nameless));
        let opens = CloseToOpen::new(Arc::clone(&fs));
        let mut config = [0; CONFIG_BYTES];
        let length = tag.len().min(TAG_BYTES);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        let request_queues = (QUEUE_SIZES.len() - REQUEST_QUEUE) as u32;
        config[TAG_BYTES..].copy_from_slice(&request_queues.to_le_bytes());
        Ok(Self {
            config,
            features: 0,
            front: Front::new(Arc::clone(&fs), opens.clone())?,
            server: Server::new(opens),
            removed: Arc::default(),
            infos,
            fs_is_unshared: false,
        })
    }

    /// Offers the feature [`PORTS`], and returns what the ports read.
    pub fn offer_ports(&mut self) -> CurrentVersions {
        self.features |= PORTS;
        CurrentVersions::new(self.front.opens())
    }

    /// Where the machine gives a file for what removed files hold that are open when it is saved.
    pub fn removed_files(&self) -> Arc<RemovedFiles> {
        Arc::clone(&self.removed)
    }

    /// virtiofsd changes its thread's working directory and umask, which threads otherwise share.
    fn unshare_fs_once(&mut self) -> Result<(), DeviceError> {
        if !self.fs_is_unshared {
            unshare_fs().map_err(DeviceError::host(NAME, "unshare(CLONE_FS)"))?;
            self.fs_is_unshared = true;
        }
        Ok(())
    }

    /// Has virtiofsd execute a request and returns the length of the response.
    fn pass_on(
        &self,
        memory: &GuestMemory,
        request: DescriptorChain<&GuestMemory>,
    ) -> Result<u32, DeviceError> {
        let malformed = |reason| DeviceError::Protocol {
            device: NAME,
            reason,
        };
        let reader = Reader::new(memory, request.clone())
            .map_err(|_| malformed("the request lies outside guest memory"))?;
        let writer = Writer::new(memory, request)
            .map_err(|_| malformed("the response buffers lie outside guest memory"))?;
        let written = self
            .server
            .handle_message(reader, writer, None::<&mut ()>)
            .map_err(|_| malformed("malformed FUSE message"))?;
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Executes one request, and returns the length of the response, or `None` if it comes later.
    fn serve(
        &mut self,
        index: usize,
        chain: Chain<'_>,
        io: &mut DeviceIo<'_>,
    ) -> Result<Option<u32>, DeviceError> {
        let header = message::peek_header(&chain);
        if let Some(header) = header
            && let Err(error) = self.front.check(&header, &chain)
        {
            let mut room = chain.writable;
            return Ok(Some(message::write_reply(
                &mut room,
                header.unique,
                &Err(error),
            )));
        }
        if let Some(header) = header.filter(|header| self.front.handles(header))
            && let Handled::Here(written) = self.handle(index, &header, chain, io)?
        {
            return Ok(written);
        }
        let unparsed = io.unparsed(index).map_err(DeviceError::queue(NAME, index));
        let Some(request) = unparsed? else {
            return Ok(None);
        };
        let written = self.pass_on(io.memory, request)?;
        if let Some(header) = header.filter(message::may_change) {
            self.front.watches.executed(header.nodeid);
        }
        Ok(Some(written))
    }

    /// Has the front handle a request.
    fn handle<'m>(
        &mut self,
        index: usize,
        header: &InHeader,
        chain: Chain<'m>,
        io: &mut DeviceIo<'_>,
    ) -> Result<Handled<'m>, DeviceError> {
        let (mut body, mut room) = (chain.readable, chain.writable);
        let origin = Origin {
            queue: index,
            head: chain.head,
            unique: header.unique,
        };
        body.split_to(size_of_val(header))
            .map_err(DeviceError::queue(NAME, index))?;
        let outcome = self.front.handle(origin, header, body);
        self.attach_watches(io)?;
        Ok(Handled::Here(match outcome {
            Outcome::Answered(reply) => {
                Some(message::write_reply(&mut room, header.unique, &reply))
            }
            Outcome::Silent => Some(0),
            Outcome::Later => None,
            Outcome::Passed => return Ok(Handled::Not(room)),
        }))
    }

    fn attach_watches(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        (self.front.watches.attach(io.host, CHANGES))
            .map_err(DeviceError::host(NAME, "watch for changes"))
    }

    fn files(&self) -> Arc<Files> {
        Arc::clone(self.front.files())
    }

    /// Executes the requests that were kept when the state was saved from which the device goes on,
    /// and those that have come since.
    fn resume(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if !std::mem::take(&mut self.front.restored.is_new) {
            return Ok(());
        }
        for (queue, head) in std::mem::take(&mut self.front.restored.kept) {
            let malformed = || DeviceError::queue(NAME, queue);
            let Some(chain) = io.reopen(queue, head).map_err(malformed())? else {
                continue;
            };
            let header = message::peek_header(&chain);
            let handled = match header.filter(|header| self.front.handles(header)) {
                Some(header) => self.handle(queue, &header, chain, io)?,
                None => Handled::Not(chain.writable),
            };
            let written = match handled {
                Handled::Here(written) => written,
                // Requests that virtiofsd serves are not kept: the guest has changed this one.
                Handled::Not(mut room) => {
                    let unique = header.map_or(0, |header| header.unique);
                    Some(message::write_reply(&mut room, unique, &Err(Errno::IO)))
                }
            };
            if let Some(written) = written {
                io.push(queue, head, written).map_err(malformed())?;
            }
        }
        (0..QUEUE_SIZES.len()).try_for_each(|queue| self.process_queue(queue, io))
    }

    fn process_requests(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        while let Some(chain) = io.pop(index).map_err(DeviceError::queue(NAME, index))? {
            let is_about_room = || {
                message::peek_header(&chain).is_some_and(|header| message::is_about_room(&header))
            };
            if index != HIPRIO_QUEUE && is_about_room() {
                self.forget(io)?;
                if io.budget.is_postponed(HIPRIO_QUEUE) {
                    io.unpop(index);
                    io.budget.postpone(index);
                    break;
                }
            }
            self.execute(index, chain, io)?;
        }
        Ok(())
    }

    /// Interrupts the requests that the guest interrupted, if there are any, once all are here that
    /// it had made available before.
    fn interrupt(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if self.front.interrupted.is_empty() {
            return Ok(());
        }
        let queues = REQUEST_QUEUE..QUEUE_SIZES.len();
        for queue in queues.clone() {
            self.process_requests(queue, io)?;
        }
        // What is left of a queue comes with the next call.
        if !queues
            .into_iter()
            .any(|queue| io.budget.is_postponed(queue))
        {
            for unique in std::mem::take(&mut self.front.interrupted) {
                self.front.deferred.interrupt(unique);
            }
        }
        Ok(())
    }

    /// Serves one request, and returns it to the driver unless its answer comes later.
    fn execute(
        &mut self,
        index: usize,
        chain: Chain<'_>,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        let head = chain.head;
        match self.serve(index, chain, io)? {
            Some(written) => {
                (io.push(index, head, written)).map_err(DeviceError::queue(NAME, index))
            }
            None => Ok(()),
        }
    }

    /// Executes what is next in the high priority queue as long as it is a FORGET. It was sent
    /// before a request that needs room or asks for it, and what a removed file took of the disk is
    /// free when it is forgotten.
    fn forget(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let index = HIPRIO_QUEUE;
        while let Some(chain) = io.pop(index).map_err(DeviceError::queue(NAME, index))? {
            if !message::peek_header(&chain).is_some_and(|header| message::is_forget(&header)) {
                io.unpop(index);
                break;
            }
            self.execute(index, chain, io)?;
        }
        Ok(())
    }

    /// Writes the replies of kept requests that have come.
    fn process_replies(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        for (origin, reply) in self.front.deferred.take_replies() {
            let Origin {
                queue,
                head,
                unique,
            } = origin;
            let malformed = || DeviceError::queue(NAME, queue);
            let Some(chain) = io.reopen(queue, head).map_err(malformed())? else {
                continue;
            };
            let mut room = chain.writable;
            let written = message::write_reply(&mut room, unique, &reply);
            io.push(queue, head, written).map_err(malformed())?;
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            id: device_id::FS,
            queue_sizes: QUEUE_SIZES,
            features: self.features,
        }
    }

    fn awaited_queue(&self) -> Option<usize> {
        Some(AWAITED_QUEUE)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn start(&mut self, _features: u64, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let event = self.front.deferred.fd();
        (io.host.watch(event, REPLIES, Readiness::READABLE))
            .map_err(DeviceError::host(NAME, "watch for replies"))
    }

    fn process_queue(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.unshare_fs_once()?;
        // Before anything that comes later, such as an interrupt of one of them.
        self.resume(io)?;
        self.process_requests(index, io)?;
        self.interrupt(io)
    }

    fn process_host_event(
        &mut self,
        token: u32,
        _ready: Readiness,
        io: &mut DeviceIo<'_>,
    ) -> Result<(), DeviceError> {
        if token == CHANGES {
            self.front.watches.answer();
        }
        self.resume(io)?;
        self.process_replies(io)
    }

    fn reset(&mut self, host: &mut dyn HostFds) {
        self.front.reset();
        host.unwatch(self.front.deferred.fd());
    }

    fn save(&mut self, io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
        state::save(self, io)
    }

    fn restore(&mut self, state: &[u8], io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        state::restore(self, state, io)
    }
}

/// What became of a request in the front.
enum Handled<'m> {
    /// The length of the answer, or `None` if it comes later.
    Here(Option<u32>),
    /// It is virtiofsd's. With the room for the answer.
    Not(Buffers<'m>),
}

/// Has the kernel make the process's table of descriptors large enough for many files, while it has
/// one thread. When threads share the table, the kernel waits for all readers each time before it
/// replaces it by a larger one (`synchronize_rcu`), which takes 10 ms and more.
fn make_room_for_files(any: &File, max_fds: u64) {
    let highest = ROOM_FOR_FDS.min(max_fds).saturating_sub(1);
    // Without it the table grows later.
    let _ = rustix::io::fcntl_dupfd_cloexec(any, highest as i32);
}

#[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
fn unshare_fs() -> io::Result<()> {
    // SAFETY: CLONE_FS separates this thread's working directory, root and umask from the other
    // threads', none of which uses them.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    Ok(())
}

#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "serves tests alone"
)]
#[cfg_attr(not(test), allow(dead_code, reason = "a fuzzer needs a part of it"))]
mod client;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(
    clippy::unwrap_used,
    reason = "a test, of random tests and of a fuzzer"
)]
pub mod hostile;
#[cfg(test)]
mod tests;
