//! The `kvm` engine: rvm-vmm.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rvm_protocol::PARAM_SHARED;
use rvm_protocol::vmm::{
    ChannelError, Event, FdIndex, MachineConfig, StartTimes, StopReason, VsockPort,
};

use super::{
    Engine, EngineError, EngineKind, Machine, MachineEnd, Plan, check_host_memory, create_console,
    io_failed, open_initramfs, open_kernel,
};
use crate::process::ProcessId;
use crate::readable::Readable;
use crate::spawn::Vmm;

/// The parameters that a kernel on our machine needs; see guest-kernel/README.md for what each is
/// worth.
const KERNEL_PARAMS: &str = "console=hvc0 earlyprintk=ttyS0 quiet panic=-1 reboot=t \
     tsc=reliable no_timer_check noreplace-smp \
     ifb.numifbs=0 dummy.numdummies=0 zram.num_devices=0";

/// The engine.
pub struct Kvm;

impl Engine for Kvm {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn start_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn start(&self, plan: Plan<'_>) -> Result<Box<dyn Machine>, EngineError> {
        check_host_memory(plan.size)?;
        let mut fds = Fds::default();
        let config = MachineConfig {
            parent: std::process::id(),
            boot_vcpus: plan.size.vcpus,
            max_vcpus: plan.size.vcpus,
            memory_mib: plan.size.memory_mib,
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
            nets: Vec::new(),
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

    pub(super) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// A machine that rvm-vmm runs.
struct KvmMachine {
    /// A second descriptor of the control socket, to wait on.
    control: Readable,
    vmm: Vmm,
    times: Option<StartTimes>,
}

impl KvmMachine {
    fn new(vmm: Vmm) -> Result<Self, EngineError> {
        let fd = vmm.channel().as_fd();
        rustix::io::ioctl_fionbio(fd, true)
            .map_err(|e| io_failed("prepare the control socket")(e.into()))?;
        let control = Readable::new(fd).map_err(io_failed("watch the control socket"))?;
        Ok(Self {
            control,
            vmm,
            times: None,
        })
    }

    /// The next thing that rvm-vmm tells. None if it tells nothing any more.
    async fn event(&mut self) -> Option<Event> {
        let channel = self.vmm.channel();
        let received = self.control.read(|_| match channel.receive() {
            Err(ChannelError::Socket(error)) => Err(error),
            other => Ok(other),
        });
        Some(received.await.ok()?.ok()?.0)
    }

    /// What a process that said nothing died of.
    fn post_mortem(&mut self) -> MachineEnd {
        // The control socket has closed, so the process has ended or is about to.
        let status = self.vmm.kill().and_then(|()| self.vmm.exit_status());
        MachineEnd::Failed(super::qemu::describe_exit(
            "rvm-vmm",
            &status,
            &self.vmm.last_words(),
        ))
    }
}

#[async_trait::async_trait]
impl Machine for KvmMachine {
    fn processes(&self) -> io::Result<Vec<ProcessId>> {
        Ok(vec![self.vmm.id()?])
    }

    async fn ended(&mut self) -> MachineEnd {
        loop {
            match self.event().await {
                Some(Event::Started(times)) => self.times = Some(*times),
                Some(Event::Stopped(StopReason::PowerOff)) => return MachineEnd::PowerOff,
                Some(Event::Stopped(StopReason::GuestReset)) => return MachineEnd::GuestReset,
                Some(Event::Stopped(StopReason::Failed { reason })) => {
                    return MachineEnd::Failed(reason);
                }
                // Answers to what nobody asked.
                Some(Event::Done | Event::Refused { .. }) => {}
                None => return self.post_mortem(),
            }
        }
    }

    fn start_times(&self) -> Option<&StartTimes> {
        self.times.as_ref()
    }

    fn kill(&mut self) -> io::Result<()> {
        self.vmm.kill()
    }
}
