//! Attempts that namespaces and missing capabilities must stop, without the filters.
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Error};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;
use serde::Deserialize;

use crate::{Report, outcome, syscall};

/// The targets.
#[derive(Deserialize)]
pub struct Host {
    /// A process on the host.
    pid: libc::c_long,
    /// A TCP server of the host.
    tcp: std::net::SocketAddr,
    /// The name of an abstract Unix socket that the host listens on.
    socket: String,
    /// A key in the session keyring.
    key: CString,
    /// A file on the file system that the container's root is on.
    secret: PathBuf,
    /// Its handle; empty if the file system has none.
    handle: Vec<u8>,
}

impl Host {
    pub fn read(path: &Path) -> Self {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

/// Keeps attempts without a jail from changing the host's mounts.
pub fn leave_the_hosts_mounts() {
    #[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
    // SAFETY: there is one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}

/// Tries everything, each attempt in its own process, after `prepare`.
pub fn run(host: &Host, prepare: fn()) -> Report {
    let mut report = Report::new();
    for (name, attempt) in FILES.iter().chain(NETWORK).chain(PROCESSES).chain(RIGHTS) {
        report.insert(
            (*name).to_owned(),
            outcome(|| {
                prepare();
                attempt(host)
            }),
        );
    }
    report
}

type Attempt = (&'static str, fn(&Host) -> io::Result<()>);

const FILES: &[Attempt] = &[
    ("read a file of the host", |host| read(&host.secret)),
    ("read a file of the system", |_| read("/etc/passwd")),
    ("climb out of the root", |_| {
        read("../../../../../etc/passwd")
    }),
    ("enter the root of a process", |host| {
        read(format!("/proc/{}/root/etc/passwd", host.pid))
    }),
    ("climb up from a descriptor", |_| {
        climb_up_from_descriptors()
    }),
    ("open a file by its handle", open_by_handle),
    ("open a descriptor again for writing", |_| {
        reopen_for_writing()
    }),
    ("write a setting of the kernel", |_| {
        write("/proc/sys/kernel/core_pattern")
    }),
    ("write a file of the system", |_| write("/usr/bin/env")),
    ("make and open a device", |_| make_and_open_device()),
];

const NETWORK: &[Attempt] = &[
    ("connect to a TCP server", |host| {
        TcpStream::connect_timeout(&host.tcp, Duration::from_secs(5)).map(drop)
    }),
    ("connect to an abstract socket", |host| {
        let address = SocketAddr::from_abstract_name(&host.socket)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    // AF_VSOCK ignores network namespaces and leads to the hypervisor below the host, so there must
    // be no such socket.
    ("connect by vsock", |_| {
        syscall(
            libc::SYS_socket,
            [libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0, 0, 0],
        )
    }),
];

const PROCESSES: &[Attempt] = &[
    ("signal a process of the host", |host| {
        syscall(libc::SYS_kill, [host.pid, 0, 0, 0, 0])
    }),
    ("signal any other process", |_| {
        syscall(libc::SYS_kill, [-1, 0, 0, 0, 0])
    }),
    ("read about a process of the host", |host| {
        read(format!("/proc/{}/status", host.pid))
    }),
    ("trace a process of the host", |host| {
        syscall(
            libc::SYS_ptrace,
            [libc::PTRACE_SEIZE.into(), host.pid, 0, 0, 0],
        )
    }),
    ("hold a process of the host", |host| {
        syscall(libc::SYS_pidfd_open, [host.pid, 0, 0, 0, 0])
    }),
    ("read the limits of a process of the host", |host| {
        syscall(
            libc::SYS_prlimit64,
            [host.pid, libc::RLIMIT_NOFILE.into(), 0, 0, 0],
        )
    }),
];

const RIGHTS: &[Attempt] = &[
    ("mount a file system", |_| {
        let flags = MountFlags::empty();
        Ok(rustix::mount::mount(
            "none",
            "/",
            "tmpfs",
            flags,
            None::<&CStr>,
        )?)
    }),
    ("make the system's mount writable", |_| remount()),
    ("unmount what it sees", |_| {
        Ok(rustix::mount::unmount("/proc", UnmountFlags::DETACH)?)
    }),
    ("change the root", |_| Ok(rustix::process::chroot("/")?)),
    ("make a user namespace", |_| unshare(libc::CLONE_NEWUSER)),
    ("make a network namespace", |_| unshare(libc::CLONE_NEWNET)),
    ("read a key of the host", |host| find_key(&host.key)),
    ("load a BPF program", |_| load_bpf()),
    ("reach I/O ports", |_| {
        syscall(libc::SYS_ioperm, [0x80, 1, 1, 0, 0])
    }),
    ("regain a capability", |_| regain_capability()),
    ("become root", |_| {
        syscall(libc::SYS_setresuid, [0, 0, 0, 0, 0])
    }),
    ("make very many threads", |_| make_threads()),
    ("execute a program", |_| execute()),
    ("raise its own limits", |_| {
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        Ok(rustix::process::setrlimit(Resource::Core, unlimited)?)
    }),
    (
        "be granted privileges by a program",
        |_| match rustix::thread::no_new_privs()? {
            false => Ok(()),
            true => Err(Error::from_raw_os_error(libc::EPERM)),
        },
    ),
];

fn read(path: impl AsRef<Path>) -> io::Result<()> {
    fs::read(path).map(drop)
}

fn write(path: &str) -> io::Result<()> {
    File::options().write(true).open(path).map(drop)
}

/// Tries every open descriptor: a directory of the host would lead to all of it.
fn climb_up_from_descriptors() -> io::Result<()> {
    let up = "../".repeat(8);
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    for fd in 3..1024 {
        #[expect(unsafe_code, reason = "descriptors by number")]
        // SAFETY: it is used at once, and nothing else goes on in this process.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        for goal in [
            "etc/passwd",
            "1/root/etc/passwd",
            "sys/kernel/core_pattern",
            "../etc/passwd",
        ] {
            match openat(fd, format!("{up}{goal}"), OFlags::RDONLY, Mode::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::BADF) => break,
                Err(error) => last = error.into(),
            }
        }
    }
    Err(last)
}

/// Tries every file that is open for reading, by way of /proc or a descriptor of its directory.
fn reopen_for_writing() -> io::Result<()> {
    #[expect(unsafe_code, reason = "descriptors by number")]
    // SAFETY: it is used at once, and nothing else goes on in this process.
    let all = (3..1024).map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let kind = |fd: &BorrowedFd<'_>| {
        let mode = rustix::fs::fstat(fd).ok()?.st_mode;
        Some(FileType::from_raw_mode(mode))
    };
    let (files, directories): (Vec<_>, Vec<_>) = all
        .filter(|fd| matches!(kind(fd), Some(FileType::RegularFile | FileType::Directory)))
        .partition(|fd| kind(fd) == Some(FileType::RegularFile));
    let proc = openat(CWD, "/proc/self/fd", OFlags::RDONLY, Mode::empty());
    let proc = proc.as_ref().ok().map(AsFd::as_fd);
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    for file in files {
        let flags = rustix::fs::fcntl_getfl(file)?;
        if flags & OFlags::ACCMODE != OFlags::RDONLY {
            continue;
        }
        for directory in proc.iter().chain(&directories) {
            let name = file.as_raw_fd().to_string();
            match openat(directory, name, OFlags::WRONLY, Mode::empty()) {
                Ok(_) => return Ok(()),
                Err(error) => last = error.into(),
            }
        }
    }
    Err(last)
}

/// The container's root is on a file system of the host, whose other files could be opened by
/// handle.
fn open_by_handle(host: &Host) -> io::Result<()> {
    if host.handle.is_empty() {
        return Err(Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    let outside = host.secret.parent().unwrap();
    for root in [
        Path::new("/box/rootfs"),
        Path::new("/shared/box/rootfs"),
        outside,
    ] {
        let Ok(root) = openat(CWD, root, OFlags::RDONLY, Mode::empty()) else {
            continue;
        };
        let handle = host.handle.as_ptr() as libc::c_long;
        match syscall(
            libc::SYS_open_by_handle_at,
            [root.as_raw_fd().into(), handle, 0, 0, 0],
        ) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn make_and_open_device() -> io::Result<()> {
    let zero = rustix::fs::makedev(1, 5);
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    // In any writable directory.
    for dir in ["/box/rootfs/tmp", "/shared/box/rootfs/tmp", "/tmp", ""] {
        let path = format!("{dir}/escape-device-{}", std::process::id());
        let kind = FileType::CharacterDevice;
        let made = mknodat(CWD, &path, kind, Mode::RUSR, zero).map_err(Error::from);
        let opened = made.and_then(|()| {
            let opened = File::open(&path);
            fs::remove_file(&path)?;
            opened
        });
        match opened {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn remount() -> io::Result<()> {
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    for mounted in ["/usr", "/"] {
        match rustix::mount::mount_remount(mounted, MountFlags::BIND, "") {
            Ok(()) => return Ok(()),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn unshare(namespace: libc::c_int) -> io::Result<()> {
    syscall(libc::SYS_unshare, [namespace.into(), 0, 0, 0, 0])
}

fn find_key(description: &CStr) -> io::Result<()> {
    const KEYCTL_SEARCH: libc::c_long = 10;
    const SESSION: libc::c_long = -3;
    let (kind, description) = (c"user".as_ptr(), description.as_ptr());
    let strings = (kind as libc::c_long, description as libc::c_long);
    syscall(
        libc::SYS_keyctl,
        [KEYCTL_SEARCH, SESSION, strings.0, strings.1, 0],
    )
}

/// Loads a socket filter that returns 0.
fn load_bpf() -> io::Result<()> {
    /// The start of union bpf_attr for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: *const u64,
        license: *const libc::c_char,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    let instructions = [0xb7_u64, 0x95];
    let load = Load {
        kind: 1,
        count: 2,
        instructions: instructions.as_ptr(),
        license: c"GPL".as_ptr(),
    };
    let (at, size) = (
        &raw const load as libc::c_long,
        size_of::<Load>() as libc::c_long,
    );
    syscall(libc::SYS_bpf, [BPF_PROG_LOAD, at, size, 0, 0])
}

/// Makes more threads than a jail may have; the kernel counts processes as such. They end with this
/// process.
fn make_threads() -> io::Result<()> {
    for _ in 0..600 {
        let thread = std::thread::Builder::new().stack_size(16 << 10);
        thread.spawn(std::thread::park)?;
    }
    Ok(())
}

/// Executes a program of the system, or of the container.
fn execute() -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    let mut last = Error::from_raw_os_error(libc::ENOENT);
    for program in ["/usr/bin/true", "/bin/true", "/box/rootfs/bin/busybox"] {
        let failed = std::process::Command::new(program).arg("true").exec();
        if failed.kind() != io::ErrorKind::NotFound {
            last = failed;
        }
    }
    Err(last)
}

fn regain_capability() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective |= CapabilitySet::SYS_ADMIN;
    sets.permitted |= CapabilitySet::SYS_ADMIN;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
