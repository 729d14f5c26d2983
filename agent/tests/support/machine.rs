//! The machine itself.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use rvm_protocol::vmm::{BackendConfig, Channel, Event, FdIndex, VsockPort};
use rvm_protocol::{AGENT_PORT, STREAM_PORT};

/// As rvm starts its guests on QEMU.
const KERNEL_PARAMS: &str = "console=hvc0 quiet earlyprintk=ttyS0 panic=-1 reboot=t tsc=reliable \
    no_timer_check noreplace-smp cryptomgr.notests random.trust_cpu=on swiotlb=4096,1,force \
    rootfstype=ramfs";

/// A running guest.
pub struct Machine {
    directory: PathBuf,
    next_id: AtomicU64,
    /// QEMU, once it has been started.
    process: Mutex<Option<Child>>,
}

/// The guest of this test binary, started by the first test that asks.
///
/// It belongs to a thread that never ends: the kernel kills the processes with their parent
/// thread, and so exactly when the test binary ends, however it does.
pub fn shared(tag: &str) -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    MACHINE
        .get_or_init(|| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let tag = tag.to_owned();
            std::thread::spawn(move || {
                let started = start(&tag);
                sender.send(started.map(|(machine, _)| machine)).unwrap();
                loop {
                    std::thread::park();
                }
            });
            receiver.recv().unwrap()
        })
        .as_ref()
}

fn start(tag: &str) -> Option<(Machine, Child)> {
    let kernel = kernel()?;
    let vmm = program("RVM_VMM", "rvm-vmm")?;
    let qemu = program("RVM_QEMU", "qemu-system-x86_64")?;
    // Not a directory of its own each time: nothing runs at the end of a test binary that could
    // remove it.
    let name = std::env::current_exe()
        .unwrap()
        .file_stem()
        .unwrap()
        .to_owned();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let machine = Machine {
        directory,
        next_id: AtomicU64::new(1),
        process: Mutex::new(None),
    };
    std::fs::create_dir_all(machine.shared_directory()).unwrap();
    let initramfs = machine.path("initramfs");
    let agent = std::env::var("RVM_TEST_AGENT");
    let agent = agent.unwrap_or(env!("CARGO_BIN_EXE_rvm-agent").to_owned());
    std::fs::write(&initramfs, archive(Path::new(&agent))).unwrap();
    let backend = start_backend(&machine, &vmm);
    let mut qemu = qemu_command(&machine, &qemu, &kernel, &initramfs);
    let files =
        format!("vhost-user-fs-device,chardev=files,tag={tag},queue-size=1024,iommu_platform=on");
    let process = spawn(qemu.arg("-device").arg(files));
    *machine.process.lock().unwrap() = Some(process);
    Some((machine, backend))
}

/// Starts what serves the vsock and file devices.
fn start_backend(machine: &Machine, vmm: &Path) -> Child {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    // It insists on being the first process of its own pid and mount namespaces, and lets the guest
    // write only to mounts in the directory that it shares.
    let writable = machine.shared_directory();
    let child = spawn(
        Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--kill-child"])
            .args([
                "sh",
                "-c",
                "mount --bind \"$1\" \"$1\" && exec \"$2\" backend",
                "sh",
            ])
            .args([&writable, vmm])
            .stdin(Stdio::from(theirs)),
    );
    let ours = Channel::new(ours);
    let listen = |name: &str| UnixListener::bind(machine.path(name)).unwrap();
    let (silence, _) = UnixStream::pair().unwrap();
    let console = File::create(machine.path("unused-console")).unwrap();
    let fds: [OwnedFd; 6] = [
        listen("vhost-vsock").into(),
        listen("vhost-fs").into(),
        listen(&AGENT_PORT.to_string()).into(),
        listen(&STREAM_PORT.to_string()).into(),
        silence.into(),
        console.into(),
    ];
    let config = BackendConfig {
        parent: child.id(),
        vsock_device: FdIndex(0),
        files_device: FdIndex(1),
        vsock: [(AGENT_PORT, 2), (STREAM_PORT, 3)]
            .map(|(port, index)| VsockPort {
                port,
                listener: FdIndex(index),
            })
            .into(),
        console_input: FdIndex(4),
        console: FdIndex(5),
        shared_dir: machine.path("shared"),
    };
    ours.send(&config, &fds.each_ref().map(|fd| fd.as_fd()))
        .unwrap();
    // It ends when this end of the channel is closed.
    std::thread::spawn(move || match ours.receive::<Event>() {
        Ok((event, _)) => eprintln!("rvm-vmm backend: {event:?}"),
        Err(error) => eprintln!("rvm-vmm backend: {error}"),
    });
    child
}

/// The machine's devices, but for those that need a path.
const QEMU_OPTIONS: [(&str, &str); 13] = [
    ("-M", "microvm,acpi=off,memory-backend=mem,rtc=on"),
    ("-accel", "tcg"),
    ("-cpu", "max,-erms,-fsrm"),
    ("-m", "512"),
    ("-smp", "1"),
    ("-display", "none"),
    ("-object", "memory-backend-memfd,id=mem,share=on,size=512M"),
    ("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ("-serial", "chardev:console"),
    ("-device", "virtio-serial-device"),
    ("-device", "virtconsole,chardev=console"),
    ("-device", "vhost-user-vsock-device,chardev=vsock"),
    ("-global", "virtio-mmio.force-legacy=false"),
];

fn qemu_command(machine: &Machine, qemu: &Path, kernel: &Path, initramfs: &Path) -> Command {
    let log = std::env::var("RVM_TEST_LOG").unwrap_or("info".to_owned());
    let console = machine.console();
    let vsock = machine.path("vhost-vsock");
    let files = machine.path("vhost-fs");
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-reboot"])
        .arg("-chardev")
        .arg(format!("file,id=console,mux=on,path={}", console.display()))
        .arg("-chardev")
        .arg(format!("socket,id=vsock,path={}", vsock.display()))
        .arg("-chardev")
        .arg(format!("socket,id=files,path={}", files.display()));
    for (option, value) in QEMU_OPTIONS {
        command.args([option, value]);
    }
    let more = std::env::var("RVM_TEST_QEMU_ARGS").unwrap_or_default();
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("{KERNEL_PARAMS} rvm.log={log}"))
        .args(more.split_whitespace())
        .stdin(Stdio::null());
    command
}

impl Machine {
    /// The path in the guest of [`Self::shared_directory`].
    pub const SHARED: &str = "/run/rvm/shared/all";

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A directory of the host that the guest shares.
    pub fn shared_directory(&self) -> PathBuf {
        self.path("shared").join("all")
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> PathBuf {
        self.path("console")
    }

    /// Waits for the machine to end and returns QEMU's exit status.
    pub fn wait(&self) -> Option<i32> {
        let process = self.process.lock().unwrap().take();
        process.unwrap().wait().unwrap().code()
    }

    /// A stream id that has not been used.
    pub fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Connects to a port of the guest. Before the guest is up, what is written waits.
    pub async fn connect(&self, port: u32) -> tokio::net::UnixStream {
        tokio::net::UnixStream::connect(self.path(&port.to_string()))
            .await
            .unwrap()
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
    let found = std::env::split_paths(&path)
        .map(|path| path.join(name))
        .find(|path| path.exists());
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

/// An initramfs that holds one program, as init; see buffer-format.rst of the kernel.
fn archive(init: &Path) -> Vec<u8> {
    // Debug information would be twenty times the program, and the guest has it all in memory.
    let stripped = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strip")
        .arg("-o")
        .arg(stripped.path())
        .arg(init)
        .status()
        .unwrap();
    assert!(status.success(), "strip {}", init.display());
    let program = std::fs::read(stripped.path()).unwrap();
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("init", 0o100_755, program.as_slice()),
        ("TRAILER!!!", 0, &[]),
    ] {
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
