//! The `qemu` engine: QEMU's software CPU, jailed by rvm-vmm and served by it with vsock.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rvm_protocol::POWER_OFF_BYTE;
use rvm_protocol::vmm::{BackendConfig, Channel, Event, QemuConfig, StartTimes, StopReason};

use super::kvm::Fds;
use super::qemu_args::{Fd, MAX_NETS, arguments};
use super::qmp::Qmp;
use super::{
    Engine, EngineError, EngineKind, Machine, MachineEnd, Plan, check_host_memory, create_console,
    io_failed, open_initramfs, open_kernel, tsc,
};
use crate::engine::spawn::Vmm;
use crate::host::process::ProcessId;
use crate::network::{Mac, NetCard, Room};
use crate::share::STAGE;
use crate::sizing::Size;
use rvm_sys::readiness::Readable;

/// QEMU's exit status after the guest wrote its byte to the isa-debug-exit device.
const EXIT_POWER_OFF: i32 = 2 * POWER_OFF_BYTE as i32 + 1;

/// How long QEMU may take from hanging up to its end. It frees the guest's memory meanwhile.
const LAST_STEPS: Duration = Duration::from_millis(500);

/// The socket at which rvm-vmm waits for QEMU, until it has come.
const VHOST_USER_SOCKET: &str = "vhost-user.sock";

/// Network cards for interfaces that come later: microvm has no hotplug. Each costs a start about
/// ten milliseconds.
const IDLE_NETS: usize = 2;

/// The engine.
pub struct Qemu {
    /// The QEMU binary.
    pub program: PathBuf,
}

impl Engine for Qemu {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn start_timeout(&self) -> Duration {
        Duration::from_secs(180)
    }

    /// Memory is plugged into machines with PCI or ACPI, and microvm has neither.
    fn grows_memory(&self) -> bool {
        false
    }

    fn net_room(&self) -> Room {
        Room {
            most: MAX_NETS,
            idle: IDLE_NETS,
        }
    }

    fn start(&self, plan: Plan<'_>) -> Result<Box<dyn Machine>, EngineError> {
        check_host_memory(plan.size.memory_mib)?;
        let program = find_program(&self.program)?;
        let (console, console_input) =
            UnixStream::pair().map_err(io_failed("make the console's stream"))?;
        let stage_dir = plan.dir.join(STAGE);
        let (listener, connection) = vhost_user_pair(plan.dir)?;
        let (monitor, monitor_qemu) = Qmp::pair().map_err(io_failed("make QEMU's monitor"))?;

        let mut fds = Fds::default();
        let config = BackendConfig {
            parent: std::process::id(),
            vhost_user: fds.add(listener),
            vsock: fds.add_ports(plan.ports),
            console_input: fds.add(console_input),
            console: fds.add(create_console(plan.console)?),
            stage_dir: stage_dir.clone(),
        };
        let backend = Vmm::start(plan.vmm, "backend", &config, &fds.borrow())?;

        let mut fds = Fds::default();
        for fd in Fd::ALL {
            match fd {
                Fd::Kernel => fds.add(open_kernel(plan.kernel)?),
                Fd::Initramfs => fds.add(open_initramfs(plan.initramfs)?),
                Fd::Console => fds.add(console.try_clone().map_err(io_failed("dup"))?),
                Fd::Vsock => fds.add(connection.try_clone().map_err(io_failed("dup"))?),
                Fd::Monitor => fds.add(monitor_qemu.try_clone().map_err(io_failed("dup"))?),
            };
        }
        let macs: Vec<Mac> = plan.nets.iter().map(|card| card.mac).collect();
        for card in plan.nets {
            fds.add(card.tap);
        }
        let config = QemuConfig {
            parent: std::process::id(),
            program,
            args: arguments(
                plan.size,
                plan.max.vcpus,
                tsc::host_khz(),
                plan.kernel_params,
                &macs,
            ),
            shared_dir: plan.shared.to_owned(),
            stage_dir,
        };
        let qemu = Vmm::start(plan.vmm, "qemu", &config, &fds.borrow())?;
        let memory_mib = plan.size.memory_mib;
        Ok(Box::new(QemuMachine::new(
            qemu, backend, monitor, memory_mib,
        )?))
    }
}

fn find_program(path: &Path) -> Result<PathBuf, EngineError> {
    path.canonicalize().map_err(|source| EngineError::Open {
        what: "QEMU (install qemu-system-x86, or set qemu in rvm's configuration)",
        path: path.to_owned(),
        source,
    })
}

/// A listening socket and a connection that waits at it. Its name is gone when this returns.
fn vhost_user_pair(dir: &Path) -> Result<(UnixListener, UnixStream), EngineError> {
    let dir = fs::File::open(dir).map_err(io_failed("open the sandbox's directory"))?;
    // A socket's address has room for 107 bytes, and a state root may be longer.
    let path = PathBuf::from(format!(
        "/proc/self/fd/{}/{VHOST_USER_SOCKET}",
        dir.as_raw_fd()
    ));
    let pair = UnixListener::bind(&path)
        .and_then(|listener| Ok((listener, UnixStream::connect(&path)?)))
        .map_err(io_failed("make the vhost-user socket"))?;
    fs::remove_file(&path).map_err(io_failed("remove the vhost-user socket"))?;
    Ok(pair)
}

/// A machine that QEMU runs.
struct QemuMachine {
    /// The processes' pidfds.
    ended: [Readable; 2],
    monitor: Qmp,
    /// What it was started with.
    memory_mib: u64,
    processes: Mutex<Processes>,
}

struct Processes {
    qemu: Vmm,
    backend: Vmm,
}

impl QemuMachine {
    fn new(qemu: Vmm, backend: Vmm, monitor: Qmp, memory_mib: u64) -> Result<Self, EngineError> {
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
        size.memory_mib.min(self.memory_mib) << 20
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    /// Whether the back end has ended as it does when QEMU hangs up.
    fn backend_had_its_end(&mut self) -> bool {
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
        // Both must be gone before their last words are complete.
        let _ = self.backend.kill();
        match (qemu, backend) {
            (Ok(Some(status)), _) if status.code() == Some(EXIT_POWER_OFF) => MachineEnd::PowerOff,
            // -no-reboot ends QEMU in place of a reset.
            (Ok(Some(status)), _) if status.success() => MachineEnd::GuestReset(None),
            // Without its back end QEMU is of no use. If that ended first, it is what explains more.
            (_, Ok(Some(first))) if !first.success() => {
                let words = self.backend.last_words();
                let first = Ok(Some(first));
                MachineEnd::Failed(describe_exit("QEMU's vsock back end", &first, &words))
            }
            (status, _) => {
                MachineEnd::Failed(describe_exit("QEMU", &status, &self.qemu.last_words()))
            }
        }
    }
}

/// What a process told before it ended, if it told anything.
fn refusal(channel: &Channel) -> Option<String> {
    rustix::io::ioctl_fionbio(channel.as_fd(), true).ok()?;
    match channel.receive() {
        Ok((Event::Stopped(StopReason::Failed { reason }), _)) => Some(reason),
        _ => None,
    }
}

#[async_trait::async_trait]
impl Machine for QemuMachine {
    fn processes(&self) -> io::Result<Vec<ProcessId>> {
        let processes = self.processes();
        Ok(vec![processes.qemu.id()?, processes.backend.id()?])
    }

    async fn ended(&self) -> MachineEnd {
        let [qemu, backend] = &self.ended;
        // Waiting fails only if the runtime is being shut down.
        tokio::select! {
            _ = qemu.read(|_| Ok(())) => {}
            _ = backend.read(|_| Ok(())) => {}
            never = self.monitor.listen() => match never {},
        }
        if self.processes().backend_had_its_end() {
            // QEMU hung up because it ends. How it ends by itself tells what the guest did.
            let _ = tokio::time::timeout(LAST_STEPS, qemu.read(|_| Ok(()))).await;
        }
        self.processes().post_mortem()
    }

    fn start_times(&self) -> Option<StartTimes> {
        None
    }

    async fn plug_net(&self, _card: NetCard) -> Result<(), EngineError> {
        Err(EngineError::NoHotplug)
    }

    async fn unplug_net(&self, _mac: Mac) -> Result<bool, EngineError> {
        Ok(false)
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

    fn kill(&self) -> io::Result<()> {
        let mut processes = self.processes();
        let qemu = processes.qemu.kill();
        processes.backend.kill().and(qemu)
    }
}

/// How a process ended, in one line.
pub(super) fn describe_exit(
    name: &str,
    status: &io::Result<Option<ExitStatus>>,
    last_words: &[String],
) -> String {
    let how = match status {
        Ok(Some(status)) => match (status.code(), status.signal()) {
            (_, Some(libc::SIGSYS)) => {
                "was killed by SIGSYS: it made a system call that its filter forbids".to_owned()
            }
            (_, Some(signal)) => format!("was killed by signal {signal}"),
            (Some(code), _) => format!("ended with status {code}"),
            (None, None) => "ended".to_owned(),
        },
        Ok(None) => "ended".to_owned(),
        Err(error) => format!("is gone ({error})"),
    };
    match last_words {
        [] => format!("{name} {how}"),
        lines => format!("{name} {how}: {}", lines.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_described_with_the_last_words() {
        let killed = Ok(Some(ExitStatus::from_raw(9)));
        assert_eq!(
            describe_exit("QEMU", &killed, &[]),
            "QEMU was killed by signal 9"
        );
        let failed = Ok(Some(ExitStatus::from_raw(1 << 8)));
        let words = ["no such option".to_owned()];
        assert_eq!(
            describe_exit("QEMU", &failed, &words),
            "QEMU ended with status 1: no such option"
        );
    }

    #[test]
    fn a_missing_qemu_says_what_to_install() {
        let error = find_program(Path::new("/nonexistent/qemu"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("qemu-system-x86") && error.contains("/nonexistent/qemu"));
    }

    #[test]
    fn the_vhost_user_socket_leaves_no_name_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (listener, _connection) = vhost_user_pair(dir.path()).unwrap();
        listener.accept().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
