//! The vhost-user transport, which serves a device to another program's machine, here QEMU's.
//!
//! vhost-user-backend implements the protocol, the queues' doorbells and the thread; this adapts
//! one device to it. The device's host descriptors are on an epoll of their own, which that thread
//! watches as one descriptor.
//!
//! QEMU's software CPU keeps translations of the code that it has run, and notices only its own
//! guest's writes to that code, not those of a back end in another process. A device whose buffers
//! may become code therefore never writes to them: see [`Buffers::Bounced`].

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub(crate) mod hostile;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, CreateFlags, EventData};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Budget;
use super::device::{DeviceError, DeviceIo, HostFds, Readiness, VirtioDevice};
use super::epoll::{readiness, watch};
use super::spec::feature;
use crate::fds::borrow_eventfd;
use crate::jail::JailError;
use crate::jail::filter::ThreadKind;
use crate::logging::error_chain;
use crate::memory::GuestMemory;
use crate::threads;

type Memory = GuestMemoryAtomic<GuestMemory>;
type Vring = VringRwLock<Memory>;

/// The daemon's number for the epoll of host descriptors. It numbers its queues and its
/// exit event from 0.
const HOST_EVENT: u16 = 100;

/// What the epoll of host descriptors says if a queue was postponed. The devices' tokens have 32
/// bits.
const POSTPONED: u64 = 1 << 32;

/// The size up to which QEMU's MMIO transport lets a driver set every queue, whatever the device
/// says.
const MAX_QUEUE_SIZE: usize = 1024;

/// A device could not be served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    #[error("cannot watch the device's descriptors")]
    Watch(#[source] io::Error),
    #[error("vhost-user: {0}")]
    Daemon(String),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Filter(#[from] JailError),
    #[error(transparent)]
    Device(DeviceError),
}

/// A device for the one front end that connects to a socket.
pub struct Service<D> {
    /// The name of the device and of its thread.
    pub name: &'static str,
    pub device: D,
    /// The number of queues that the front end passes on; it handles the device's other queues.
    pub queues: usize,
    /// Whether the front end reads the configuration space here, and has none of its own.
    pub serves_config: bool,
    pub buffers: Buffers,
    /// The system calls of the device's thread.
    pub filter: ThreadKind,
    pub listener: UnixListener,
}

/// Where the buffers of requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// Where the driver's user has them.
    InPlace,
    /// In a pool of the guest's kernel, whose CPU copies between them and where the driver's user
    /// has them (VIRTIO_F_ACCESS_PLATFORM, and `swiotlb=…,force` on the kernel's command line).
    /// QEMU keeps from the back end whether the driver has accepted that, and refuses one that has
    /// not.
    ///
    /// Each descriptor of a queue then takes a place in the pool. A queue of indirect descriptors
    /// would need one more for each request, and would let a guest exceed a pool of any size.
    Bounced,
}

impl Buffers {
    fn features(self) -> u64 {
        match self {
            Self::InPlace => feature::INDIRECT_DESC,
            Self::Bounced => feature::ACCESS_PLATFORM,
        }
    }

    /// QEMU takes ACCESS_PLATFORM for an IOMMU, which it would tell a back end about by these.
    fn protocol_features(self) -> VhostUserProtocolFeatures {
        match self {
            Self::InPlace => VhostUserProtocolFeatures::empty(),
            Self::Bounced => {
                VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::BACKEND_REQ
            }
        }
    }
}

/// How serving a device ended: well if the front end has disconnected.
pub type End = Result<(), VhostUserError>;

/// A device as vhost-user-backend sees it.
struct Backend<D> {
    /// The library shares the back end between threads, behind a lock: this one is always free.
    device: Mutex<D>,
    queues: usize,
    serves_config: bool,
    buffers: Buffers,
    /// Taken by the device's thread, which takes the name and applies the filter before it serves
    /// its first request. The library calls all such threads vring_worker.
    thread: Option<(CString, ThreadKind)>,
    memory: Option<Memory>,
    watches: Watches,
    /// The queues of which the device has more to process, see [`Budget`]; the event that says so
    /// is one of the host's descriptors.
    postponed: Vec<usize>,
    postponed_event: EventFd,
    acked: u64,
    started: bool,
    ends: Sender<End>,
    /// Where QEMU waits for requests of ours. There are none, but it would complain if it closed.
    requests: Option<vhost::vhost_user::Backend>,
}

/// The device's host descriptors.
struct Watches(OwnedFd);

impl HostFds for Watches {
    fn watch(&mut self, fd: BorrowedFd<'_>, token: u32, wanted: Readiness) -> io::Result<()> {
        watch(&self.0, fd, EventData::new_u64(token.into()), wanted)
    }

    fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, fd);
    }
}

impl<D: VirtioDevice> Backend<D> {
    fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(
        &mut self,
        vrings: &[Vring],
        work: impl FnOnce(&mut D, &mut DeviceIo<'_>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let memory = memory.memory();
        let mut states: Vec<_> = vrings.iter().map(VringT::get_mut).collect();
        let used: Vec<u16> = states
            .iter()
            .map(|state| state.get_queue().next_used())
            .collect();
        let mut io = DeviceIo {
            memory: &memory,
            queues: states
                .iter_mut()
                .map(|state| state.get_queue_mut())
                .collect(),
            host: &mut self.watches,
            budget: Budget::default(),
        };
        let device = self.device.get_mut();
        let device = device.unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut self.started, true) {
            device.start(self.acked, &mut io)?;
        }
        work(device, &mut io)?;
        if self.postponed.is_empty() && io.budget.postponed().next().is_some() {
            // A write fails only when the counter is full, and then the thread wakes up anyway.
            let _ = self.postponed_event.write(1);
        }
        for queue in io.budget.postponed() {
            if !self.postponed.contains(&queue) {
                self.postponed.push(queue);
            }
        }
        for (state, before) in states.iter_mut().zip(used) {
            let queue = state.get_queue_mut();
            if queue.next_used() != before && queue.needs_notification(&*memory).unwrap_or(false) {
                // This fails only if the front end has ended, and then this process ends too.
                let _ = state.signal_used_queue();
            }
        }
        Ok(())
    }

    fn host_events(&mut self, vrings: &[Vring]) -> Result<(), DeviceError> {
        let mut buffer = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 32];
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let (events, _) = epoll::wait(&self.watches.0, &mut buffer, Some(&now))
            .map_err(|e| DeviceError::host("vhost-user", "epoll_wait")(e.into()))?;
        for event in events {
            let data = event.data.u64();
            if data == POSTPONED {
                for queue in std::mem::take(&mut self.postponed) {
                    self.call(vrings, |device, io| device.process_queue(queue, io))?;
                }
                continue;
            }
            let (token, ready) = (data as u32, readiness(event.flags));
            self.call(vrings, |device, io| {
                device.process_host_event(token, ready, io)
            })?;
        }
        Ok(())
    }

    fn serve_event(&mut self, event: u16, vrings: &[Vring]) -> End {
        if let Some((name, filter)) = self.thread.take() {
            // The name tells users which thread it is, and nothing depends on it.
            let _ = rustix::thread::set_name(&name);
            filter.apply()?;
        }
        let result = match event {
            HOST_EVENT => self.host_events(vrings),
            queue => self.call(vrings, |device, io| {
                device.process_queue(usize::from(queue), io)
            }),
        };
        result.map_err(VhostUserError::Device)
    }
}

impl<D: VirtioDevice> VhostUserBackendMut for Backend<D> {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device().info().features
            | self.buffers.features()
            | feature::VERSION_1
            | feature::EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&mut self, features: u64) {
        self.acked = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = self.buffers.protocol_features() | VhostUserProtocolFeatures::MQ;
        features.set(VhostUserProtocolFeatures::CONFIG, self.serves_config);
        features
    }

    // The daemon sets it on the queues itself.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // VHOST_USER_MAX_CONFIG_SIZE is 256, which the daemon has checked.
        let mut data = vec![0; size as usize];
        self.device().read_config(offset as usize, &mut data);
        data
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, requests: vhost::vhost_user::Backend) {
        self.requests = Some(requests);
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        // This front end cannot be told that the device needs a reset, so an error ends the thread,
        // and the process with it.
        self.serve_event(event, vrings).map_err(|error| {
            let text = error_chain(&error);
            let _ = self.ends.send(Err(error));
            io::Error::other(text)
        })
    }
}

/// Starts the threads that serve a device: the device's, and one that talks to the front end.
/// `ends` receives how that ended. Each thread applies its filter first, so the caller has none
/// yet.
pub fn spawn<D: VirtioDevice + 'static>(
    service: Service<D>,
    ends: Sender<End>,
) -> Result<(), VhostUserError> {
    let (name, filter) = (service.name, service.filter);
    let thread = CString::new(name).map_err(|e| VhostUserError::Thread(e.into()))?;
    let (mut daemon, listener) = daemon(service, ends.clone(), Some((thread, filter)))?;
    let talk = move || {
        let end = ThreadKind::VhostUser.apply().map_err(VhostUserError::from);
        // The library's thread inherits the filter.
        let end = end.and_then(|()| daemon.start(&mut listener.into()).map_err(failed));
        // This fails only if the process ends already.
        let _ = ends.send(end.and_then(|()| wait(&mut daemon)));
    };
    threads::spawn(format!("{name}-qemu"), talk).map_err(VhostUserError::Thread)
}

/// The library's part, with the device's thread, and where its front end will connect. The thread
/// takes the name and applies the filter before it serves its first request.
fn daemon<D: VirtioDevice + 'static>(
    service: Service<D>,
    ends: Sender<End>,
    thread: Option<(CString, ThreadKind)>,
) -> Result<(Daemon<D>, UnixListener), VhostUserError> {
    let watches =
        Watches(epoll::create(CreateFlags::CLOEXEC).map_err(|e| VhostUserError::Watch(e.into()))?);
    let postponed_event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let postponed_event = postponed_event.map_err(VhostUserError::Watch)?;
    let (event, data) = (
        borrow_eventfd(&postponed_event),
        EventData::new_u64(POSTPONED),
    );
    watch(&watches.0, event, data, Readiness::READABLE).map_err(VhostUserError::Watch)?;
    let epoll = watches.0.as_raw_fd();
    let backend = Backend {
        device: Mutex::new(service.device),
        queues: service.queues,
        serves_config: service.serves_config,
        buffers: service.buffers,
        thread,
        memory: None,
        watches,
        postponed: Vec::new(),
        postponed_event,
        acked: 0,
        started: false,
        ends,
        requests: None,
    };
    let daemon = VhostUserDaemon::new(
        "vhost-user".to_owned(),
        Arc::new(Mutex::new(backend)),
        GuestMemoryAtomic::new(GuestMemory::new()),
    )
    .map_err(failed)?;
    for handler in daemon.get_epoll_handlers() {
        handler
            .register_listener(epoll, EventSet::IN, HOST_EVENT.into())
            .map_err(VhostUserError::Watch)?;
    }
    Ok((daemon, service.listener))
}

type Daemon<D> = VhostUserDaemon<Arc<Mutex<Backend<D>>>>;

fn wait<D: VirtioDevice + 'static>(daemon: &mut Daemon<D>) -> End {
    match daemon.wait() {
        // The front end has disconnected, as it does at the end of every machine.
        Err(vhost_user_backend::Error::HandleRequest(
            vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: vhost_user_backend::Error) -> VhostUserError {
    VhostUserError::Daemon(error.to_string())
}
