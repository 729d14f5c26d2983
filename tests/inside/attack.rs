//! What a container may try against the machine that it shares with others: each attempt prints its
//! name and `refused`, with the error, or `reached`, with what.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::mem::size_of;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rvm_protocol::{AGENT_PORT, SHARED_TAG, STREAM_PORT};

/// An attempt: what it reached, or why not.
type Attempt = fn() -> Result<String>;

/// All but the restart of the machine, which ends the container.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("processes", processes),
    ("agent", agent),
    ("agents-ports", agents_ports),
    ("memory", memory),
    ("io-ports", io_ports),
    ("io-permissions", io_permissions),
    ("module", module),
    ("kexec", kexec),
    ("sysrq", || open("/proc/sysrq-trigger")),
    ("core-pattern", core_pattern),
    ("modprobe", || open("/proc/sys/kernel/modprobe")),
    ("uevent-helper", || open("/sys/kernel/uevent_helper")),
    ("device-nodes", device_nodes),
    ("drivers", drivers),
    ("shared-files", shared_files),
    ("file-handles", file_handles),
    ("cgroups", cgroups),
    ("bpf", bpf),
    ("perf", perf),
    ("kernel-log", kernel_log),
    ("namespaces", namespaces),
];

/// Where the attempts mount.
const MOUNT_POINT: &str = "/mnt-of-attack";

pub fn run() {
    fs::create_dir_all(MOUNT_POINT).unwrap();
    for (name, attempt) in ATTEMPTS {
        match attempt() {
            Ok(what) => println!("{name}: reached {what}"),
            Err(error) => println!("{name}: refused {error}"),
        }
    }
}

/// Restarts the machine.
pub fn restart() {
    println!("restart");
    // SAFETY: the call takes a number.
    let result = unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    println!("{result}: {}", Error::last_os_error());
}

/// The result of a system call.
fn checked(result: impl Into<i64>) -> Result<i64> {
    match result.into() {
        result if result < 0 => Err(Error::last_os_error()),
        result => Ok(result),
    }
}

fn refused(why: &str) -> Result<String> {
    Err(Error::other(why.to_owned()))
}

/// Opens a file for writing, and writes nothing.
fn open(path: &str) -> Result<String> {
    File::options().write(true).open(path)?;
    Ok(path.to_owned())
}

/// Processes that are not this one.
fn processes() -> Result<String> {
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others: Vec<u32> = pids.filter(|pid| *pid != std::process::id()).collect();
    // SAFETY: the call takes numbers.
    let killed = unsafe { libc::kill(-1, 0) };
    match (others.is_empty(), checked(killed)) {
        (true, Err(error)) => Err(error),
        _ => Ok(format!("{others:?}")),
    }
}

fn vsock(cid: u32, port: u32) -> (i32, libc::sockaddr_vm) {
    // SAFETY: the structure is one of numbers, for which zeros are values.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as u16;
    (address.svm_cid, address.svm_port) = (cid, port);
    // SAFETY: the call takes numbers. The descriptor closes with this program.
    (
        unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) },
        address,
    )
}

const VSOCK_LENGTH: u32 = size_of::<libc::sockaddr_vm>() as u32;

/// The agent from inside, and the host.
fn agent() -> Result<String> {
    let mut last = Error::other("nothing was tried");
    for cid in [1, 2, rvm_protocol::GUEST_CID] {
        for port in [AGENT_PORT, STREAM_PORT, 22] {
            let (socket, address) = vsock(cid, port);
            // SAFETY: the address is one of this length.
            let result =
                unsafe { libc::connect(socket, (&raw const address).cast(), VSOCK_LENGTH) };
            match checked(result) {
                Ok(_) if has_answer(socket) => return Ok(format!("{cid}:{port}")),
                Ok(_) => last = Error::other("connected, and closed at once"),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Whether a connection is not closed as soon as it is made.
fn has_answer(socket: i32) -> bool {
    let mut byte = 0_u8;
    // SAFETY: the buffer has a byte.
    unsafe { libc::recv(socket, (&raw mut byte).cast(), 1, 0) != 0 }
}

/// The agent's place: what the host sends to it would come here.
fn agents_ports() -> Result<String> {
    let mut last = Error::other("nothing was tried");
    for cid in [libc::VMADDR_CID_ANY, rvm_protocol::GUEST_CID] {
        for port in [AGENT_PORT, STREAM_PORT] {
            let (socket, address) = vsock(cid, port);
            // SAFETY: the address is one of this length.
            let result = unsafe { libc::bind(socket, (&raw const address).cast(), VSOCK_LENGTH) };
            match checked(result) {
                Ok(_) => return Ok(format!("{port}")),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// The machine's memory and ports, by a node of our own.
fn memory() -> Result<String> {
    node(FileType::CharacterDevice, 1, 1)
        .or_else(|_| node(FileType::CharacterDevice, 1, 4))
        .or_else(|_| {
            let bytes = fs::read("/proc/kcore")?;
            if bytes.is_empty() {
                refused("/proc/kcore is empty")
            } else {
                Ok("kcore".to_owned())
            }
        })
}

fn node(kind: FileType, major: u32, minor: u32) -> Result<String> {
    let path = Path::new("/node-of-attack");
    let _ = fs::remove_file(path);
    rustix::fs::mknodat(
        CWD,
        path,
        kind,
        Mode::RUSR,
        rustix::fs::makedev(major, minor),
    )?;
    File::open(path)?;
    Ok(format!("{major}:{minor}"))
}

/// Disks, and the devices through which file systems are made.
fn device_nodes() -> Result<String> {
    let devices = fs::read_to_string("/proc/devices")?;
    let blocks = devices.split("Block devices:").nth(1).unwrap_or_default();
    let majors = blocks
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let mut last = Error::other("there are no disks");
    for major in majors {
        match node(FileType::BlockDevice, major, 0) {
            Ok(what) => return Ok(what),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn io_ports() -> Result<String> {
    // SAFETY: the call takes a number, and the program uses no port.
    checked(unsafe { libc::iopl(3) }).map(|_| "all ports".to_owned())
}

fn io_permissions() -> Result<String> {
    // SAFETY: likewise.
    checked(unsafe { libc::ioperm(0xf4, 1, 1) }).map(|_| "port 0xf4".to_owned())
}

fn module() -> Result<String> {
    // SAFETY: the module has no bytes.
    let result = unsafe { libc::syscall(libc::SYS_init_module, c"".as_ptr(), 0, c"".as_ptr()) };
    checked(result).map(|_| "a module".to_owned())
}

fn kexec() -> Result<String> {
    // SAFETY: a kernel of no segments is none.
    let result = unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0) };
    checked(result).map(|_| "another kernel".to_owned())
}

fn mount(source: &str, kind: &str) -> Result<()> {
    let flags = rustix::mount::MountFlags::empty();
    Ok(rustix::mount::mount(
        source,
        MOUNT_POINT,
        kind,
        flags,
        None,
    )?)
}

fn unmount() {
    let _ = rustix::mount::unmount(MOUNT_POINT, rustix::mount::UnmountFlags::DETACH);
}

/// The program that the kernel would run for a core, by the path of the container or a new one.
fn core_pattern() -> Result<String> {
    open("/proc/sys/kernel/core_pattern").or_else(|_| {
        mount("proc", "proc")?;
        let result = open(&format!("{MOUNT_POINT}/sys/kernel/core_pattern"));
        unmount();
        result
    })
}

/// The drivers of the machine's devices, which could be taken from the agent.
fn drivers() -> Result<String> {
    open("/sys/bus/virtio/drivers/virtiofs/unbind").or_else(|_| {
        mount("sysfs", "sysfs")?;
        let result = open(&format!("{MOUNT_POINT}/bus/virtio/drivers/virtiofs/unbind"));
        unmount();
        result
    })
}

/// The files that the host shares with all containers of the machine.
fn shared_files() -> Result<String> {
    mount(SHARED_TAG, "virtiofs")?;
    let names = fs::read_dir(MOUNT_POINT)?.count();
    unmount();
    Ok(format!("{names} directories"))
}

/// The same by a handle, of FUSE's first node: the shared directory, if the container's root is of
/// its file system.
fn file_handles() -> Result<String> {
    /// FILEID_INO64_GEN: the halves of a node, the upper one first, and a generation.
    const KIND: i32 = 0x81;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        node: [u32; 3],
    }
    let root = File::open("/")?;
    let handle = Handle {
        bytes: 12,
        kind: KIND,
        node: [0, 1, 0],
    };
    // SAFETY: the handle has as many bytes as it says.
    let result = unsafe {
        use std::os::fd::AsRawFd;
        libc::syscall(
            libc::SYS_open_by_handle_at,
            root.as_raw_fd(),
            &raw const handle,
            libc::O_PATH,
        )
    };
    checked(result).map(|_| "the shared directory".to_owned())
}

/// Control groups beside one's own.
fn cgroups() -> Result<String> {
    mount("cgroup2", "cgroup2")?;
    let path = fs::read_to_string("/proc/self/cgroup")?;
    // The root of the machine alone has this file.
    let is_root = Path::new(MOUNT_POINT).join("cpu.stat.local").exists()
        && !Path::new(MOUNT_POINT).join("cgroup.events").exists();
    unmount();
    if is_root {
        Ok("all groups".to_owned())
    } else {
        refused(path.trim())
    }
}

/// Programs of others, such as their device rules.
fn bpf() -> Result<String> {
    const BPF_PROG_GET_NEXT_ID: i32 = 11;
    let attributes = [0_u64; 16];
    let length = size_of_val(&attributes);
    // SAFETY: the attributes have this length.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_NEXT_ID,
            &raw const attributes,
            length,
        )
    };
    checked(result).map(|_| "programs of others".to_owned())
}

/// Events of all processes on a processor.
fn perf() -> Result<String> {
    // PERF_TYPE_SOFTWARE, and the structure's first length.
    let mut attributes = [0_u64; 16];
    attributes[0] = 1 | 64 << 32;
    // SAFETY: the attributes are longer than they say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            0,
            -1,
            0,
        )
    };
    checked(result).map(|_| "events of all processes".to_owned())
}

fn kernel_log() -> Result<String> {
    /// SYSLOG_ACTION_READ_ALL
    const READ_ALL: i32 = 3;
    let mut text = [0_u8; 4096];
    // SAFETY: the buffer has as many bytes.
    let result = unsafe { libc::klogctl(READ_ALL, text.as_mut_ptr().cast(), 4096) };
    checked(result).map(|bytes| format!("{bytes} bytes"))
}

/// The namespaces of the machine's first process.
fn namespaces() -> Result<String> {
    use std::os::fd::AsFd;
    // In this container's own pid namespace, process 1 is this program; ids below 1 are nobody's.
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let first = fs::read_link("/proc/1/ns/mnt")?;
    if own == first {
        return refused("process 1 is this one");
    }
    let file = File::open("/proc/1/ns/mnt")?;
    rustix::thread::move_into_link_name_space(file.as_fd(), None)?;
    Ok("the mounts of process 1".to_owned())
}
