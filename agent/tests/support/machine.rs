//! The machine itself.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A running guest.
pub struct Machine {
    directory: tempfile::TempDir,
    next_id: AtomicU64,
}

/// The guest of this test binary, started by the first test that asks.
///
/// It belongs to a thread that never ends: the kernel kills the processes with their parent
/// thread, and so exactly when the test binary ends, however it does.
pub fn shared() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    MACHINE
        .get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let started = start();
                let keep = started.as_ref().is_some();
                sender.send(started.map(|(machine, _)| machine)).unwrap();
                while keep {
                    std::thread::park();
                }
            });
            receiver.recv().unwrap()
        })
        .as_ref()
}

fn start() -> Option<(Machine, [Child; 2])> {
    let kernel = kernel()?;
    let vsock = program("RVM_VHOST_DEVICE_VSOCK", "vhost-device-vsock")?;
    let qemu = program("RVM_QEMU", "qemu-system-x86_64")?;
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine { directory, next_id: AtomicU64::new(1) };
    std::fs::create_dir(machine.shared_directory()).unwrap();
    let initramfs = machine.path("initramfs");
    std::fs::write(&initramfs, archive(Path::new(env!("CARGO_BIN_EXE_rvm-agent")))).unwrap();
    let device = spawn(
        Command::new(vsock)
            .arg("--socket")
            .arg(machine.path("vhost"))
            .arg("--uds-path")
            .arg(machine.path("vsock"))
            .stderr(Stdio::null()),
    );
    wait_for(&machine.path("vhost"));
    let machine_process = spawn(&mut qemu_command(&machine, &qemu, &kernel, &initramfs));
    Some((machine, [device, machine_process]))
}

fn qemu_command(machine: &Machine, qemu: &Path, kernel: &Path, initramfs: &Path) -> Command {
    let log = std::env::var("RVM_TEST_LOG").unwrap_or("info".to_owned());
    let mut command = Command::new(qemu);
    command
        .args(["-M", "microvm,acpi=off,memory-backend=mem,rtc=on", "-accel", "tcg", "-cpu", "max"])
        .args(["-m", "512", "-smp", "1", "-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-object", "memory-backend-memfd,id=mem,share=on,size=512M"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .arg("-serial")
        .arg(format!("file:{}", machine.console().display()))
        .arg("-chardev")
        .arg(format!("socket,id=vsock,path={}", machine.path("vhost").display()))
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"])
        .arg("-fsdev")
        .arg(format!(
            "local,id=shared,security_model=passthrough,multidevs=remap,path={}",
            machine.shared_directory().display()
        ))
        .args(["-device", "virtio-9p-device,fsdev=shared,mount_tag=rvm"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 rvm.shared=9p rvm.log={log}"))
        .stdin(Stdio::null());
    command
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the guest sees as its shared directory.
    pub fn shared_directory(&self) -> PathBuf {
        self.path("shared")
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> PathBuf {
        self.path("console")
    }

    /// A stream id that has not been used.
    pub fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Connects to a port of the guest, waiting for it to come up.
    pub async fn connect(&self, port: u32) -> UnixStream {
        let begin = Instant::now();
        loop {
            if let Some(socket) = self.try_connect(port).await {
                return socket;
            }
            if begin.elapsed() > BOOT_TIMEOUT {
                let console = std::fs::read_to_string(self.console()).unwrap_or_default();
                panic!("the guest does not answer; its console:\n{console}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_connect(&self, port: u32) -> Option<UnixStream> {
        let mut socket = UnixStream::connect(self.path("vsock")).await.ok()?;
        socket.write_all(format!("CONNECT {port}\n").as_bytes()).await.ok()?;
        // "OK <port>\n", byte by byte: what follows is not ours.
        let mut line = Vec::new();
        let reading = async {
            while line.last() != Some(&b'\n') {
                line.push(socket.read_u8().await.ok()?);
            }
            Some(())
        };
        tokio::time::timeout(Duration::from_secs(2), reading).await.ok()??;
        line.starts_with(b"OK").then_some(socket)
    }
}

/// The guest kernel: `RVM_TEST_KERNEL`, or what guest-kernel/build has built before.
fn kernel() -> Option<PathBuf> {
    if let Some(kernel) = std::env::var_os("RVM_TEST_KERNEL") {
        return Some(kernel.into());
    }
    eprintln!("no guest kernel: set RVM_TEST_KERNEL to the path that guest-kernel/build prints");
    None
}

fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|path| path.join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("no {name}: install it or set {variable}");
    }
    found
}

fn spawn(command: &mut Command) -> Child {
    // SAFETY: prctl(2) is fit for use between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().unwrap()
}

fn wait_for(path: &Path) {
    let begin = Instant::now();
    while !path.exists() {
        assert!(begin.elapsed() < BOOT_TIMEOUT, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An initramfs that holds one program, as init; see buffer-format.rst of the kernel.
fn archive(init: &Path) -> Vec<u8> {
    let program = std::fs::read(init).unwrap();
    let mut archive = Vec::new();
    for (name, mode, content) in [("init", 0o100_755, program.as_slice()), ("TRAILER!!!", 0, &[])] {
        write!(archive, "070701{:08x}{mode:08x}", 0).unwrap();
        // uid, gid, nlink, mtime, size, device and rdev numbers, name size, checksum
        let size = content.len();
        for field in [0, 0, 1, 0, size, 0, 0, 0, 0, name.len() + 1, 0] {
            write!(archive, "{field:08x}").unwrap();
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
