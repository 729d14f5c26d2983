//! Errors of system calls, without a change of the program: a filter of seccomp(2), which all that
//! the program starts inherits, has the kernel ask this process what a system call is to do. Most
//! go on; the one that was chosen fails. A filter that the program installs itself stays in force.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A system call, and the errors that it can have where a host is out of something, or slow.
pub struct Call {
    pub name: &'static str,
    number: i64,
    pub errors: &'static [i32],
}

/// Where the socket is through which the filter's descriptor leaves the new process: nothing else
/// has this number.
const SOCKET: i32 = 900;

macro_rules! calls {
    ($($name:ident: $($error:ident)*;)*) => {
        &[$(Call {
            name: stringify!($name),
            // The name without its prefix is the C library's name of it.
            number: libc::$name,
            errors: &[$(libc::$error),*],
        }),*]
    };
}

/// What fails. A write to a file can find the disk full and one to an eventfd cannot, so reads and
/// writes are those of files alone; see [`is_meant`].
pub const CALLS: &[Call] = calls! {
    SYS_openat: EMFILE ENOMEM EIO ENOSPC EINTR;
    SYS_openat2: EMFILE ENOMEM EIO ENOSPC EINTR EAGAIN;
    SYS_mkdir: ENOSPC EIO ENOMEM;
    SYS_mkdirat: ENOSPC EIO ENOMEM;
    SYS_mknodat: ENOSPC EIO ENOMEM;
    SYS_symlinkat: ENOSPC EIO ENOMEM;
    SYS_chmod: EIO ENOMEM;
    SYS_unlink: EIO ENOMEM;
    SYS_unlinkat: EIO ENOMEM;
    SYS_rmdir: EIO ENOMEM;
    SYS_rename: ENOSPC EIO ENOMEM;
    SYS_renameat: ENOSPC EIO ENOMEM;
    SYS_renameat2: ENOSPC EIO ENOMEM;
    SYS_read: EIO ENOMEM EINTR;
    SYS_pread64: EIO ENOMEM EINTR;
    SYS_write: ENOSPC EIO ENOMEM EINTR;
    SYS_pwrite64: ENOSPC EIO ENOMEM EINTR;
    SYS_getdents64: EIO ENOMEM;
    SYS_ftruncate: ENOSPC EIO EINTR;
    SYS_statx: EIO ENOMEM;
    SYS_newfstatat: EIO ENOMEM;
    SYS_readlink: EIO ENOMEM;
    SYS_flock: ENOMEM EINTR;
    SYS_socket: EMFILE ENOMEM;
    SYS_socketpair: EMFILE ENOMEM;
    SYS_bind: ENOSPC EIO ENOMEM;
    SYS_listen: ENOMEM;
    SYS_connect: EAGAIN EINTR ENOMEM;
    SYS_accept4: EMFILE ENOMEM EINTR;
    SYS_sendto: ENOMEM EINTR;
    SYS_sendmsg: ENOMEM EINTR;
    SYS_recvfrom: ENOMEM EINTR;
    SYS_recvmsg: ENOMEM EINTR EMFILE;
    SYS_pipe2: EMFILE ENOMEM;
    SYS_eventfd2: EMFILE ENOMEM;
    SYS_signalfd4: EMFILE ENOMEM;
    SYS_timerfd_create: EMFILE ENOMEM;
    SYS_memfd_create: EMFILE ENOMEM;
    SYS_pidfd_open: EMFILE ENOMEM;
    SYS_inotify_init1: EMFILE ENOMEM;
    SYS_inotify_add_watch: ENOSPC ENOMEM;
    SYS_epoll_create1: EMFILE ENOMEM;
    SYS_epoll_ctl: ENOSPC ENOMEM;
    SYS_epoll_wait: EINTR;
    SYS_poll: EINTR ENOMEM;
    SYS_ppoll: EINTR ENOMEM;
    SYS_fcntl: EMFILE;
    SYS_dup3: EMFILE EINTR;
    SYS_mount: ENOMEM ENOSPC EIO;
    SYS_umount2: ENOMEM EIO;
    SYS_open_tree: EMFILE ENOMEM ENOSPC;
    SYS_move_mount: ENOMEM ENOSPC;
    SYS_mount_setattr: ENOMEM;
    SYS_fsopen: EMFILE ENOMEM;
    SYS_fsconfig: ENOMEM EIO;
    SYS_fsmount: EMFILE ENOMEM ENOSPC;
    SYS_setns: ENOMEM;
    SYS_unshare: ENOMEM ENOSPC;
    SYS_clone: EAGAIN ENOMEM;
    SYS_clone3: EAGAIN ENOMEM;
    SYS_vfork: EAGAIN ENOMEM;
    SYS_execve: EAGAIN ENOMEM EIO EMFILE;
    SYS_wait4: EINTR;
    SYS_waitid: EINTR;
    SYS_ioctl: EIO ENOMEM;
    SYS_mmap: ENOMEM;
    SYS_getrandom: EINTR;
};

/// The one that fails: of the calls by processes of a role, by number from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    pub role: String,
    pub call: &'static str,
    pub passage: u32,
    pub error: i32,
}

/// What processes have called, by role and call.
pub type Counts = BTreeMap<(String, &'static str), u32>;

/// Answers for the processes of one command. They fail when this is dropped, so it must outlive
/// them.
pub struct Injector {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    order: Option<Order>,
    counts: Mutex<Counts>,
    is_over: AtomicBool,
}

impl Injector {
    /// Has the command's system calls counted, and one of them fail. Its other `pre_exec` functions
    /// must be there already.
    pub fn watch(command: &mut Command, order: Option<Order>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let filter = filter(&order);
        #[expect(unsafe_code, reason = "pre_exec")]
        // SAFETY: the closure makes system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || install(&filter, &theirs))
        };
        let state = Arc::new(State {
            order,
            counts: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let answering = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            ours.set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            // None comes if the process could not be started.
            if let Some(listener) = receive(&ours) {
                answering.answer(&listener);
            }
        });
        Self {
            state,
            thread: Some(thread),
        }
    }

    pub fn counts(&self) -> Counts {
        self.state.counts.lock().unwrap().clone()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Asks for all calls, or for the one that fails.
fn filter(order: &Option<Order>) -> Vec<libc::sock_filter> {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |value| statement(libc::BPF_RET | libc::BPF_K, value);
    let unless = |value, skip| jump(value, 0, skip);
    // Offsets in struct seccomp_data; the tests are for x86-64 alone.
    let mut filter = vec![load(0), unless(libc::SYS_sendmsg as u32, 3), load(16)];
    filter.extend([unless(SOCKET as u32, 1), answer(libc::SECCOMP_RET_ALLOW)]);
    filter.push(load(0));
    let is_asked = |call: &&Call| order.as_ref().is_none_or(|order| order.call == call.name);
    for call in CALLS.iter().filter(is_asked) {
        filter.extend([
            unless(call.number as u32, 1),
            answer(libc::SECCOMP_RET_USER_NOTIF),
        ]);
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    filter
}

fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

fn jump(value: u32, is: u8, is_not: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: is,
        jf: is_not,
        k: value,
    }
}

/// Installs the filter for this process and sends its descriptor to the one that answers.
#[expect(unsafe_code, reason = "seccomp, and a message with a descriptor")]
fn install(filter: &[libc::sock_filter], socket: &UnixStream) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program outlives the call, and the numbers are descriptors of this process, which
    // is about to execute another program.
    unsafe {
        if libc::dup3(socket.as_raw_fd(), SOCKET, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut byte = 0u8;
        let mut data = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        let mut space = [0u64; 4];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header)
            .cast::<i32>()
            .write_unaligned(listener as i32);
        if libc::sendmsg(SOCKET, &raw const message, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn receive(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// The requests of seccomp_unotify(2).
const RECEIVE: libc::Ioctl = 0xc050_2100;
const ANSWER: libc::Ioctl = 0xc018_2101;

impl State {
    fn answer(&self, listener: &OwnedFd) {
        while !self.is_over.load(Ordering::Relaxed) {
            let mut ready = libc::pollfd {
                fd: listener.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            #[expect(unsafe_code, reason = "poll")]
            // SAFETY: there is one structure.
            let count = unsafe { libc::poll(&raw mut ready, 1, 50) };
            if count > 0 && ready.revents & libc::POLLIN == 0 {
                // No process is left.
                return;
            }
            if count > 0 {
                self.answer_one(listener);
            }
        }
    }

    #[expect(unsafe_code, reason = "ioctls of seccomp_unotify(2)")]
    fn answer_one(&self, listener: &OwnedFd) {
        // SAFETY: the kernel wants the structure to be zero, and fills it in.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } < 0 {
            // The process was killed meanwhile.
            return;
        }
        let error = self.error_for(&asked);
        let answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: -error.unwrap_or(0),
            flags: match error {
                Some(_) => 0,
                None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            },
        };
        // SAFETY: the structure outlives the call. It fails if the process was killed.
        unsafe { libc::ioctl(listener.as_raw_fd(), ANSWER, &raw const answer) };
    }

    fn error_for(&self, asked: &libc::seccomp_notif) -> Option<i32> {
        let number = i64::from(asked.data.nr);
        let call = CALLS.iter().find(|call| call.number == number)?;
        let role = role(asked.pid)?;
        if !is_meant(asked) {
            return None;
        }
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry((role.clone(), call.name)).or_default();
        *count += 1;
        let order = self.order.as_ref()?;
        let is_it = (&order.role, order.call, order.passage) == (&role, call.name, *count);
        is_it.then_some(order.error)
    }
}

/// Whether a call is one that the table means.
fn is_meant(asked: &libc::seccomp_notif) -> bool {
    match i64::from(asked.data.nr) {
        libc::SYS_read | libc::SYS_write => {
            let link = fs::read_link(format!("/proc/{}/fd/{}", asked.pid, asked.data.args[0]));
            link.is_ok_and(|path| path.is_absolute() && !path.starts_with("/dev"))
        }
        // The others change flags.
        libc::SYS_fcntl => [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC]
            .map(|command| command as u64)
            .contains(&asked.data.args[1]),
        _ => true,
    }
}

/// The program and the verb of a process of rvm.
fn role(pid: u32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split('\0');
    let program = Path::new(arguments.next()?).file_name()?.to_str()?;
    let verb = match program {
        "rvm" => arguments.find(|argument| VERBS.contains(argument))?,
        "rvm-vmm" => arguments.next()?,
        _ => return None,
    };
    Some(format!("{program} {verb}"))
}

/// rvm's verbs that tests call, and the hidden ones.
const VERBS: &[&str] = &[
    "create",
    "start",
    "run",
    "exec",
    "monitor",
    "exec-monitor",
    "state",
    "list",
    "kill",
    "delete",
    "ps",
    "events",
    "update",
    "pause",
    "resume",
    "checkpoint",
    "restore",
];
