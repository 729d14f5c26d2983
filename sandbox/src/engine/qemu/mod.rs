//! The `qemu` engine: QEMU's software CPU, jailed by rvm-vmm, with rvm-vmm's vsock and shared files
//! behind vhost-user.

mod args;
mod machine;
mod qmp;
mod tsc;

#[cfg(any(test, feature = "fuzzing"))]
pub use qmp::receive_any;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rvm_protocol::vmm::{BackendConfig, QemuConfig};

use super::fds::Fds;
use super::files::{check_host_memory, create_console, open_failed, open_initramfs, open_kernel};
use super::spawn::Vmm;
use super::{Engine, EngineError, Plan, Verdict, Vm, io_failed};
use crate::cgroup::Overhead;
use crate::config::{Config, EngineKind};
use crate::network::{Mac, NicLimits};
use crate::share::STAGE;
use args::{BOUNCE_MIB, CODE_MIB, Fd, MAX_NETS, arguments};
use machine::QemuMachine;
use qmp::Qmp;

/// The socket at which a device of rvm-vmm waits for QEMU, until it has come.
const VHOST_USER_SOCKET: &str = "vhost-user.sock";

/// Network cards for interfaces that come later: microvm has no hotplug. Each costs a start about
/// ten milliseconds.
const IDLE_NETS: usize = 2;

/// The engine.
pub(super) static ENGINE: Engine = Engine {
    kind: EngineKind::Qemu,
    title: "QEMU",
    // QEMU takes some 70 MiB, and its software CPU keeps code that it has translated.
    overhead: Overhead {
        memory_mib: 128 + CODE_MIB + BOUNCE_MIB,
        cpu_millis: 250,
    },
    start_timeout: Duration::from_secs(180),
    nic_limits: NicLimits {
        max: MAX_NETS,
        idle: IDLE_NETS,
    },
    net_hotplug: Err(
        "a machine of the qemu engine cannot get more network cards while it runs; connect the \
         container to its networks before it is started",
    ),
    // microvm has no hotplug, and too few slots for spare disks. Image files are in the shared
    // directory.
    disk_hotplug: Err(
        "a machine of the qemu engine has no disks; use an image file, or the kvm engine",
    ),
    disk_slots: |_| 0,
    // Memory is plugged into machines with PCI or ACPI, and microvm has neither.
    memory_hotplug: false,
    checkpoints: Err(
        "machines of the qemu engine cannot be saved to checkpoints; those of the kvm engine can",
    ),

    // QEMU throttles block devices alone, of which these machines have none.
    rate_limits: false,
    templates: Err(
        "machines of the qemu engine have no templates: each boots; those of the kvm engine have",
    ),
    probe,
    check,
    start,
};

/// A file that QEMU opens by its descriptor's name, as the user of its own that it is in its jail.
fn for_any_user(what: &'static str, path: &Path, file: File) -> Result<File, EngineError> {
    const READABLE: u32 = 0o004;
    let metadata = file.metadata().map_err(open_failed(what, path))?;
    if metadata.mode() & READABLE == 0 {
        let reason = "QEMU runs as another user than root, and it is not readable by others";
        let error = io::Error::new(io::ErrorKind::PermissionDenied, reason);
        return Err(open_failed(what, path)(error));
    }
    Ok(file)
}

fn probe(config: &Config) -> Verdict {
    let path = config.qemu.display();
    match config.qemu.exists() {
        true => Ok(format!("{path} is installed")),
        false => Err(format!("{path} is not installed")),
    }
}

/// Runs QEMU for the first line of its version.
fn check(config: &Config) -> Verdict {
    let path = config.qemu.display();
    let output = Command::new(&config.qemu).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.ok().as_deref().and_then(|text| text.lines().next()) {
        Some(line) => {
            let version = line.split(" (").next().unwrap_or(line);
            Ok(format!("{version}, {path}"))
        }
        None => Err(format!(
            "{path} is missing; install qemu-system-x86 to run without hardware virtualization"
        )),
    }
}

fn start(plan: Plan<'_>) -> Result<Box<dyn Vm>, EngineError> {
    let memory_mib = plan.size.memory_mib + BOUNCE_MIB;
    check_host_memory(memory_mib)?;
    let config = plan.config;
    let program = find_program(&config.qemu)?;
    let (console, console_input) =
        UnixStream::pair().map_err(io_failed("make the console's stream"))?;
    let (vsock_device, vsock) = vhost_user_pair(plan.dir)?;
    let (files_device, files) = vhost_user_pair(plan.dir)?;
    let (monitor, monitor_qemu) = Qmp::pair().map_err(io_failed("make QEMU's monitor"))?;

    let mut fds = Fds::default();
    let backend = BackendConfig {
        parent: std::process::id(),
        vsock_device: fds.add(vsock_device),
        files_device: fds.add(files_device),
        vsock: fds.add_ports(plan.ports),
        console_input: fds.add(console_input),
        console: fds.add(create_console(plan.console)?),
        shared_dir: plan.shared.to_owned(),
    };
    let backend = Vmm::start(&config.vmm, c"backend", plan.group, &backend, &fds.borrow())?;

    let mut fds = Fds::default();
    for fd in Fd::ALL {
        match fd {
            Fd::Kernel => {
                let kernel = open_kernel(&config.kernel)?;
                fds.add(for_any_user("the guest kernel", &config.kernel, kernel)?)
            }
            Fd::Initramfs => {
                let initramfs = open_initramfs(&config.initramfs)?;
                let path = &config.initramfs;
                fds.add(for_any_user("the guest's initramfs", path, initramfs)?)
            }
            Fd::Console => fds.add(console.try_clone().map_err(io_failed("dup"))?),
            Fd::Vsock => fds.add(vsock.try_clone().map_err(io_failed("dup"))?),
            Fd::Files => fds.add(files.try_clone().map_err(io_failed("dup"))?),
            Fd::Monitor => fds.add(monitor_qemu.try_clone().map_err(io_failed("dup"))?),
        };
    }
    let macs: Vec<Mac> = plan.nets.iter().map(|card| card.mac).collect();
    fds.add_nets(plan.nets);
    let qemu = QemuConfig {
        parent: std::process::id(),
        program,
        args: arguments(
            plan.size,
            plan.max.vcpus,
            tsc::host_khz(),
            &config.kernel_params,
            &macs,
        ),
        stage_dir: plan.dir.join(STAGE),
    };
    let qemu = Vmm::start(&config.vmm, c"qemu", plan.group, &qemu, &fds.borrow())?;
    let machine = QemuMachine::new(qemu, backend, monitor, memory_mib)?;
    Ok(Box::new(machine))
}

fn find_program(path: &Path) -> Result<PathBuf, EngineError> {
    path.canonicalize().map_err(open_failed(
        "QEMU (install qemu-system-x86, or set qemu in rvm's configuration)",
        path,
    ))
}

/// A listening socket and a connection that waits at it. Its name is gone when this returns.
fn vhost_user_pair(dir: &Path) -> Result<(UnixListener, UnixStream), EngineError> {
    let dir = File::open(dir).map_err(io_failed("open the sandbox's directory"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
