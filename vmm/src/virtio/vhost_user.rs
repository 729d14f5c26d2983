//! The vhost-user transport, which serves a device to another program's machine, here QEMU's.
//!
//! vhost-user-backend implements the protocol, the queues' doorbells and the thread; this adapts
//! one device to it. The device's host descriptors are on an epoll of their own, which that thread
//! watches as one descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, RwLock};

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

use super::device::{DeviceError, DeviceIo, HostFds, Readiness, VirtioDevice};
use super::epoll::{readiness, watch};
use super::spec::feature;
use crate::logging::error_chain;
use crate::memory::GuestMemory;

type Memory = GuestMemoryAtomic<GuestMemory>;
type Vring = VringRwLock<Memory>;

/// The daemon's number for the epoll of host descriptors. It numbers its queues and its
/// exit event from 0.
const HOST_EVENT: u16 = 100;

/// The size up to which QEMU's MMIO transport lets a driver set every queue, whatever the device
/// says.
const MAX_QUEUE_SIZE: usize = 1024;

/// A device could not be served.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    #[error("cannot watch the device's descriptors")]
    Watch(#[source] io::Error),
    #[error("vhost-user: {0}")]
    Daemon(String),
}

/// A device as vhost-user-backend sees it.
struct Backend<D> {
    device: D,
    /// The number of queues that the front end passes on; it handles the device's other queues.
    queues: usize,
    memory: Option<Memory>,
    watches: Watches,
    acked: u64,
    started: bool,
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
        };
        if !std::mem::replace(&mut self.started, true) {
            self.device.start(self.acked, &mut io)?;
        }
        work(&mut self.device, &mut io)?;
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
            let (token, ready) = (event.data.u64() as u32, readiness(event.flags));
            self.call(vrings, |device, io| {
                device.process_host_event(token, ready, io)
            })?;
        }
        Ok(())
    }
}

impl<D: VirtioDevice + Sync> VhostUserBackendMut for Backend<D> {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device.info().features
            | feature::VERSION_1
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&mut self, features: u64) {
        self.acked = features;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ
    }

    // The daemon sets it on the queues itself.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // VHOST_USER_MAX_CONFIG_SIZE is 256, which the daemon has checked.
        let mut data = vec![0; size as usize];
        self.device.read_config(offset as usize, &mut data);
        data
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
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
        let result = match event {
            HOST_EVENT => self.host_events(vrings),
            queue => self.call(vrings, |device, io| {
                device.process_queue(usize::from(queue), io)
            }),
        };
        // An error ends the thread: this front end cannot be told that the device needs a reset.
        result.map_err(|error| io::Error::other(error_chain(&error)))
    }
}

/// Serves `device` to the one front end that connects to `listener`, until it disconnects.
pub fn serve<D: VirtioDevice + Sync + 'static>(
    device: D,
    queues: usize,
    listener: std::os::unix::net::UnixListener,
) -> Result<(), VhostUserError> {
    let watches =
        Watches(epoll::create(CreateFlags::CLOEXEC).map_err(|e| VhostUserError::Watch(e.into()))?);
    let epoll = watches.0.as_raw_fd();
    let backend = Backend {
        device,
        queues,
        memory: None,
        watches,
        acked: 0,
        started: false,
    };
    let failed = |error: vhost_user_backend::Error| VhostUserError::Daemon(error.to_string());
    let mut daemon = VhostUserDaemon::new(
        "vhost-user".to_owned(),
        Arc::new(RwLock::new(backend)),
        GuestMemoryAtomic::new(GuestMemory::new()),
    )
    .map_err(failed)?;
    for handler in daemon.get_epoll_handlers() {
        handler
            .register_listener(epoll, EventSet::IN, HOST_EVENT.into())
            .map_err(VhostUserError::Watch)?;
    }
    daemon.start(&mut listener.into()).map_err(failed)?;
    match daemon.wait() {
        // The front end has disconnected, as it does at the end of every machine.
        Err(vhost_user_backend::Error::HandleRequest(
            vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
