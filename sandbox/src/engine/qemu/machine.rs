//! A machine that QEMU runs: two processes and QEMU's monitor.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rvm_protocol::POWER_OFF_BYTE;
use rvm_protocol::vmm::{Channel, ChannelError, Event, StartTimes, StopReason};

use super::ENGINE;
use super::args::BOUNCE_MIB;
use super::qmp::Qmp;
use crate::engine::exit::describe_exit;
use crate::engine::spawn::Vmm;
use crate::engine::{EngineError, MachineEnd, Plug, Save, Unplug, Vm, io_failed};
use crate::host::process::ProcessId;
use crate::host::untrusted_text::clean;
use crate::sizing::Size;
use rvm_sys::readiness::Readable;

/// QEMU's exit status after the guest wrote its byte to the isa-debug-exit device.
const EXIT_POWER_OFF: i32 = 2 * POWER_OFF_BYTE as i32 + 1;

/// How long QEMU may take from hanging up to its end. It frees the guest's memory meanwhile.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// A machine that QEMU runs.
pub(super) struct QemuMachine {
    /// The processes' pidfds.
    ended: [Readable; 2],
    monitor: Qmp,
    /// What it was started with, bounce buffers included.
    memory_mib: u64,
    processes: Mutex<Processes>,
}

struct Processes {
    qemu: Vmm,
    backend: Vmm,
}

impl QemuMachine {
    pub(super) fn new(
        qemu: Vmm,
        backend: Vmm,
        monitor: Qmp,
        memory_mib: u64,
    ) -> Result<Self, EngineError> {
        let watch =
            |vmm: &Vmm| Readable::new(vmm.pidfd()).map_err(io_failed("watch QEMU's processes"));
        let ended = [watch(&qemu)?, watch(&backend)?];
        Ok(Self {
            ended,
            monitor,
            memory_mib,
            processes: Mutex::new(Processes { qemu, backend }),
        })
    }

    /// The memory of a machine of this size, in bytes, as far as this one can have it.
    fn memory(&self, size: Size) -> u64 {
        (size.memory_mib + BOUNCE_MIB).min(self.memory_mib) << 20
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    /// Whether the back end has ended as it does when QEMU hangs up.
    fn backend_ended_well(&mut self) -> bool {
        let status = self.backend.exit_status();
        status.is_ok_and(|status| status.is_some_and(|status| status.success()))
    }

    fn post_mortem(&mut self) -> MachineEnd {
        // rvm-vmm says so if it could not become QEMU.
        if let Some(reason) = refusal(self.qemu.channel()).or(refusal(self.backend.channel())) {
            return MachineEnd::Failed(reason);
        }
        // Before it is killed, so that it is how it ended by itself.
        let backend = self.backend.exit_status();
        let qemu = self.qemu.kill().and_then(|()| self.qemu.exit_status());
        // Both must be gone before their logs are complete.
        let _ = self.backend.kill();
        match (qemu, backend) {
            (Ok(Some(status)), _) if status.code() == Some(EXIT_POWER_OFF) => MachineEnd::PowerOff,
            // -no-reboot ends QEMU in place of a reset.
            (Ok(Some(status)), _) if status.success() => MachineEnd::GuestReset(None),
            // Without its back end QEMU is of no use. If that ended first, it is what explains
            // more.
            (_, Ok(Some(first))) if !first.success() => {
                let lines = self.backend.last_lines();
                let first = Ok(Some(first));
                MachineEnd::Failed(describe_exit("QEMU's back end", &first, &lines))
            }
            (status, _) => {
                MachineEnd::Failed(describe_exit("QEMU", &status, &self.qemu.last_lines()))
            }
        }
    }
}

/// What a process told before it ended, if it told anything.
fn refusal(channel: &Channel) -> Option<String> {
    rustix::io::ioctl_fionbio(channel.as_fd(), true).ok()?;
    match channel.receive() {
        Ok((Event::Stopped(StopReason::Failed(failure)), _)) => Some(clean(&failure.to_string())),
        Err(error @ ChannelError::Version(_)) => Some(error.to_string()),
        _ => None,
    }
}

#[async_trait::async_trait]
impl Vm for QemuMachine {
    fn processes(&self) -> io::Result<Vec<ProcessId>> {
        let processes = self.processes();
        Ok(vec![processes.qemu.id()?, processes.backend.id()?])
    }

    async fn drive(&self) -> MachineEnd {
        let [qemu, backend] = &self.ended;
        // Waiting fails only if the runtime is being shut down.
        tokio::select! {
            _ = qemu.read(|_| Ok(())) => {}
            _ = backend.read(|_| Ok(())) => {}
            never = self.monitor.listen() => match never {},
        }
        if self.processes().backend_ended_well() {
            // QEMU hung up because it ends. How it ends by itself tells what the guest did.
            let _ = tokio::time::timeout(END_TIMEOUT, qemu.read(|_| Ok(()))).await;
        }
        self.processes().post_mortem()
    }

    fn start_times(&self) -> Option<StartTimes> {
        None
    }

    async fn plug(&self, device: Plug<'_>) -> Result<(), EngineError> {
        let support = match device {
            Plug::Net(_) => ENGINE.net_hotplug,
            Plug::Disk { .. } => ENGINE.disk_hotplug,
        };
        support.map_err(EngineError::Unsupported)
    }

    async fn unplug(&self, device: Unplug) -> Result<(), EngineError> {
        let support = match device {
            Unplug::Net(_) => ENGINE.net_hotplug,
            Unplug::Disk(_) => ENGINE.disk_hotplug,
        };
        support.map_err(EngineError::Unsupported)
    }

    /// All of its CPUs are there from the start.
    async fn resize(&self, size: Size) -> Result<(), EngineError> {
        let bytes = self.memory(size);
        self.monitor
            .set_memory(bytes)
            .map_err(io_failed("talk to QEMU's monitor"))
    }

    async fn resized(&self, size: Size) -> bool {
        self.monitor.has_memory(self.memory(size)).await
    }

    async fn save(&self, _: Save<'_>) -> Result<(), EngineError> {
        ENGINE.checkpoints.map_err(EngineError::Unsupported)
    }

    fn kill(&self) -> io::Result<()> {
        let mut processes = self.processes();
        let qemu = processes.qemu.kill();
        processes.backend.kill().and(qemu)
    }
}
