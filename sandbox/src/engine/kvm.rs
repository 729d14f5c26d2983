//! The `kvm` engine: rvm-vmm.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rvm_protocol::PARAM_SHARED;
use rvm_protocol::vmm::{
    Channel, ChannelError, Event, FdIndex, MAX_NETS, MachineConfig, Net, Request, StartTimes,
    StopReason, VsockPort,
};
use tokio::sync::{oneshot, watch};

use super::{
    Engine, EngineError, EngineKind, Machine, MachineEnd, Plan, check_host_memory, create_console,
    io_failed, open_initramfs, open_kernel,
};
use crate::engine::spawn::Vmm;
use crate::host::process::ProcessId;
use crate::network::{Mac, NetCard, Room};
use crate::sizing::Size;
use rvm_sys::readiness::Readable;

/// The parameters that a kernel on our machine needs; see guest-kernel/README.md for what each is
/// worth. `quiet` comes before `earlyprintk`, which else prints all that was logged before it.
const KERNEL_PARAMS: &str = "console=hvc0 quiet earlyprintk=ttyS0 panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp swiotlb=noforce \
     ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// How many network cards can be plugged in while the machine runs. Each costs every start a few
/// thousand instructions.
const SPARE_NETS: usize = 4;

/// The engine.
pub struct Kvm;

impl Engine for Kvm {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn start_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn grows_memory(&self) -> bool {
        true
    }

    fn net_room(&self) -> Room {
        Room {
            most: MAX_NETS,
            idle: 0,
        }
    }

    fn start(&self, plan: Plan<'_>) -> Result<Box<dyn Machine>, EngineError> {
        check_host_memory(plan.size.memory_mib)?;
        let mut fds = Fds::default();
        let config = MachineConfig {
            parent: std::process::id(),
            boot_vcpus: plan.size.vcpus,
            max_vcpus: plan.max.vcpus,
            memory_mib: plan.size.memory_mib,
            max_memory_mib: plan.max.memory_mib,
            cmdline: format!(
                "{KERNEL_PARAMS} {PARAM_SHARED}=virtiofs {}",
                plan.kernel_params
            ),
            kernel: fds.add(open_kernel(plan.kernel)?),
            initramfs: fds.add(open_initramfs(plan.initramfs)?),
            console: fds.add(create_console(plan.console)?),
            kvm: fds.add(open_kvm()?),
            shared_dir: plan.shared.to_owned(),
            vsock: fds.add_ports(plan.ports),
            disks: Vec::new(),
            spare_nets: SPARE_NETS.min(MAX_NETS.saturating_sub(plan.nets.len())),
            nets: fds.add_nets(plan.nets),
        };
        let vmm = Vmm::start(plan.vmm, "machine", &config, &fds.borrow())?;
        Ok(Box::new(KvmMachine::new(vmm)?))
    }
}

fn open_kvm() -> Result<std::fs::File, EngineError> {
    let path = Path::new("/dev/kvm");
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| EngineError::Open {
            what: "KVM's device",
            path: path.to_owned(),
            source,
        })
}

/// The descriptors that go with a configuration.
#[derive(Default)]
pub(super) struct Fds(Vec<OwnedFd>);

impl Fds {
    pub(super) fn add(&mut self, fd: impl Into<OwnedFd>) -> FdIndex {
        self.0.push(fd.into());
        FdIndex(self.0.len() - 1)
    }

    pub(super) fn add_ports(
        &mut self,
        ports: Vec<(u32, std::os::unix::net::UnixListener)>,
    ) -> Vec<VsockPort> {
        ports
            .into_iter()
            .map(|(port, listener)| VsockPort {
                port,
                listener: self.add(listener),
            })
            .collect()
    }

    fn add_nets(&mut self, cards: Vec<NetCard>) -> Vec<Net> {
        let add = |card: NetCard| Net {
            tap: self.add(card.tap),
            mac: card.mac,
        };
        cards.into_iter().map(add).collect()
    }

    pub(super) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// A machine that rvm-vmm runs.
struct KvmMachine {
    /// The control socket, to wait on and to talk over.
    control: Readable,
    channel: Channel,
    vmm: Mutex<Vmm>,
    times: OnceLock<StartTimes>,
    /// The memory that the guest was last found to have come to have, in MiB; 0 while it is changing.
    reached: watch::Sender<u64>,
    /// Who waits for the answers to requests, in their order.
    waiting: Mutex<VecDeque<Answer>>,
}

/// None if the request was carried out, else why not.
type Answer = oneshot::Sender<Option<String>>;

impl KvmMachine {
    fn new(vmm: Vmm) -> Result<Self, EngineError> {
        let fd = vmm.channel().as_fd();
        rustix::io::ioctl_fionbio(fd, true)
            .map_err(|e| io_failed("prepare the control socket")(e.into()))?;
        let watch = io_failed("watch the control socket");
        let own = fd.try_clone_to_owned().map_err(io_failed("dup"))?;
        Ok(Self {
            control: Readable::new(fd).map_err(watch)?,
            channel: Channel::new(own),
            vmm: Mutex::new(vmm),
            times: OnceLock::new(),
            reached: watch::Sender::new(0),
            waiting: Mutex::default(),
        })
    }

    /// The next thing that rvm-vmm tells. None if it tells nothing any more.
    async fn event(&self) -> Option<Event> {
        let received = self.control.read(|_| match self.channel.receive() {
            Err(ChannelError::Socket(error)) => Err(error),
            other => Ok(other),
        });
        Some(received.await.ok()?.ok()?.0)
    }

    /// Has a request carried out.
    async fn request(
        &self,
        action: &'static str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        let (answer, answered) = oneshot::channel();
        {
            // Held while sending, so that answers come in the order of those who wait.
            let mut waiting = lock(&self.waiting);
            self.channel
                .send(request, fds)
                .map_err(|source| EngineError::Channel { action, source })?;
            waiting.push_back(answer);
        }
        let reason = match answered.await {
            Ok(None) => return Ok(()),
            Ok(Some(reason)) => reason,
            Err(_) => "it has ended".to_owned(),
        };
        Err(EngineError::Refused { action, reason })
    }

    fn answered(&self, answer: Option<String>) {
        if let Some(waiting) = lock(&self.waiting).pop_front() {
            // Whoever asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// What a process that said nothing died of.
    fn post_mortem(&self) -> MachineEnd {
        let mut vmm = lock(&self.vmm);
        // The control socket has closed, so the process has ended or is about to.
        let status = vmm.kill().and_then(|()| vmm.exit_status());
        MachineEnd::Failed(super::qemu::describe_exit(
            "rvm-vmm",
            &status,
            &vmm.last_words(),
        ))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Machine for KvmMachine {
    fn processes(&self) -> io::Result<Vec<ProcessId>> {
        Ok(vec![lock(&self.vmm).id()?])
    }

    async fn ended(&self) -> MachineEnd {
        let end = loop {
            match self.event().await {
                Some(Event::Started(times)) => _ = self.times.set(*times),
                Some(Event::Done) => self.answered(None),
                Some(Event::Resized { memory_mib }) => _ = self.reached.send_replace(memory_mib),
                Some(Event::Refused { reason }) => self.answered(Some(reason)),
                Some(Event::Stopped(StopReason::PowerOff)) => break MachineEnd::PowerOff,
                Some(Event::Stopped(StopReason::GuestReset { place })) => {
                    break MachineEnd::GuestReset(Some(place));
                }
                Some(Event::Stopped(StopReason::Failed { reason })) => {
                    break MachineEnd::Failed(reason);
                }
                None => break self.post_mortem(),
            }
        };
        lock(&self.waiting).clear();
        end
    }

    fn start_times(&self) -> Option<StartTimes> {
        self.times.get().cloned()
    }

    async fn plug_net(&self, card: NetCard) -> Result<(), EngineError> {
        let request = Request::PlugNet { mac: card.mac };
        self.request("plug a network card in", &request, &[card.tap.as_fd()])
            .await
    }

    async fn unplug_net(&self, mac: Mac) -> Result<bool, EngineError> {
        let request = Request::UnplugNet { mac };
        self.request("unplug a network card", &request, &[]).await?;
        Ok(true)
    }

    async fn resize(&self, size: Size) -> Result<(), EngineError> {
        self.reached.send_replace(0);
        let request = Request::Resize {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
        };
        self.request("change the machine's size", &request, &[])
            .await
    }

    async fn resized(&self, size: Size) -> bool {
        let mut reached = self.reached.subscribe();
        // It fails only if the machine is dropped.
        reached
            .wait_for(|mib| *mib == size.memory_mib)
            .await
            .is_ok()
    }

    fn kill(&self) -> io::Result<()> {
        lock(&self.vmm).kill()
    }
}
