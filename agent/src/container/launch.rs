//! Making the process that becomes a container's program: clone3(2), then execveat(2) of the
//! agent's own binary, which continues in [`crate::init`].
//!
//! The agent has one thread; between the two calls the child makes system calls alone all the same.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::init::plan::{Plan, fd};
use crate::power;
use crate::streams::ProcessEnds;
use crate::sys::clone::{
    CloneRequest, Cloned, become_root, clone_process, copy_fd, enter_namespaces, execute_fd,
    exit_now, read_byte, write_pid,
};
use crate::sys::{Doing as _, OsError};

/// The agent copies descriptors to numbers from here on before the child puts them at the numbers
/// of [`fd`], so that none is overwritten before it has been copied. Above the last prepared
/// mount's.
const PARKED_FROM: RawFd = 320;
/// Mounts that the agent can prepare for one container.
const MAX_MOUNTS: usize = (PARKED_FROM - fd::MOUNTS) as usize;

/// What the child reports if it cannot start; a [`crate::init::channel::Report`].
const NO_USER_NAMESPACE: &CStr =
    c"{\"Failed\":{\"stage\":\"namespaces\",\"message\":\"enter the user namespace\"}}";
const NO_EXECUTION: &CStr =
    c"{\"Failed\":{\"stage\":\"start\",\"message\":\"execute the agent's binary\"}}";

/// An existing namespace.
pub struct OpenNamespace {
    /// A file of /proc/<pid>/ns.
    pub fd: OwnedFd,
    /// `CLONE_NEW*`
    pub flag: u64,
}

impl OpenNamespace {
    pub fn open(path: &Path, flag: u64) -> Result<Self, OsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .doing(|| format!("open namespace {}", path.display()))?;
        Ok(Self { fd, flag })
    }
}

/// The child's user namespace.
pub enum User {
    Same,
    /// A new one. The child waits for a byte on its control socket before it goes on, so that the
    /// id maps can be written.
    New,
    /// An existing one, in which the other new namespaces are made.
    Existing(OwnedFd),
}

/// Everything about the process to be made.
pub struct Launch<'a> {
    /// The agent's binary.
    pub program: BorrowedFd<'a>,
    /// The directory of the cgroup to start in.
    pub cgroup: BorrowedFd<'a>,
    /// New namespaces, as `CLONE_NEW*`.
    pub create: u64,
    /// Existing namespaces to be born into.
    pub namespaces: &'a [OpenNamespace],
    pub user: &'a User,
    /// The descriptors of the program.
    pub ends: &'a ProcessEnds,
    /// The process's end of the control socket.
    pub control: BorrowedFd<'a>,
    /// From [`write_plan`].
    pub plan: BorrowedFd<'a>,
    /// The compiled seccomp filter.
    pub filter: Option<BorrowedFd<'a>>,
    /// The pidfd of the process whose namespaces to join.
    pub join: Option<BorrowedFd<'a>>,
    /// At the numbers from [`fd::MOUNTS`] on.
    pub mounts: &'a [OwnedFd],
}

/// Writes a plan to a memory file for the child.
pub fn write_plan(plan: &Plan) -> Result<OwnedFd, OsError> {
    let text = serde_json::to_vec(plan)
        .map_err(std::io::Error::from)
        .doing(|| "write the plan")?;
    memory_file("plan", &text)
}

/// A memory file with this content.
pub fn memory_file(name: &str, content: &[u8]) -> Result<OwnedFd, OsError> {
    let doing = || format!("make memory file {name}");
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).doing(doing)?;
    let mut rest = content;
    while !rest.is_empty() {
        let count = rustix::io::write(&file, rest).doing(doing)?;
        rest = &rest[count..];
    }
    Ok(file)
}

impl Launch<'_> {
    /// Makes the process, which is a child of the agent in every case.
    pub fn run(&self) -> Result<(Pid, OwnedFd), OsError> {
        let parked = self.park()?;
        let copies: Vec<(RawFd, RawFd)> = parked
            .iter()
            .map(|(fd, number)| (fd.as_raw_fd(), *number))
            .collect();
        let program = self.program.as_raw_fd();
        in_namespaces(self.namespaces, || match self.user {
            User::Same => self.clone_child(self.create, || start(program, &copies)),
            User::New => {
                let flags = self.create | libc::CLONE_NEWUSER as u64;
                self.clone_child(flags, || start_in_new_user_namespace(program, &copies))
            }
            User::Existing(user) => self.clone_through(user.as_fd(), program, &copies),
        })?
    }

    /// Copies every descriptor to a number from [`PARKED_FROM`] on.
    fn park(&self) -> Result<Vec<(OwnedFd, RawFd)>, OsError> {
        if self.mounts.len() > MAX_MOUNTS {
            return Err(Errno::TOOBIG).doing(|| "prepare that many mounts");
        }
        let ends = [
            (self.ends.stdio.as_slice(), 0),
            (&self.ends.extra, fd::EXTRA),
        ];
        let ends = ends
            .into_iter()
            .flat_map(|(fds, first)| fds.iter().map(|fd| fd.as_fd()).zip(first..));
        let fixed = [
            Some((self.control, fd::CONTROL)),
            Some((self.plan, fd::PLAN)),
            self.filter.map(|filter| (filter, fd::SECCOMP)),
            self.join.map(|join| (join, fd::JOIN)),
        ];
        let mounts = self
            .mounts
            .iter()
            .zip(fd::MOUNTS..)
            .map(|(fd, number)| (fd.as_fd(), number));
        ends.chain(fixed.into_iter().flatten())
            .chain(mounts)
            .map(|(fd, number)| Ok((fcntl_dupfd_cloexec(fd, PARKED_FROM)?, number)))
            .collect::<Result<_, Errno>>()
            .doing(|| "copy descriptors for the container")
    }

    fn clone_child(&self, flags: u64, child: impl FnOnce()) -> Result<(Pid, OwnedFd), OsError> {
        let request = CloneRequest {
            flags,
            cgroup: Some(self.cgroup),
        };
        // SAFETY: what the child runs only makes system calls and never returns.
        match unsafe { clone_process(&request) }.doing(|| "clone")? {
            Cloned::Child => {
                child();
                exit_now(crate::init::EXIT_FAILED)
            }
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        }
    }

    /// Makes the process through an intermediate one, which enters the user namespace first: the
    /// namespaces made after that belong to it.
    fn clone_through(
        &self,
        user: BorrowedFd<'_>,
        program: RawFd,
        copies: &[(RawFd, RawFd)],
    ) -> Result<(Pid, OwnedFd), OsError> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe")?;
        let report = writer.as_raw_fd();
        let create = self.create;
        let control = self.control.as_raw_fd();
        self.clone_child(0, || {
            if enter_namespaces(user, libc::CLONE_NEWUSER as u64).is_err() {
                fail(control, NO_USER_NAMESPACE);
            }
            let request = CloneRequest {
                flags: create | libc::CLONE_PARENT as u64,
                cgroup: None,
            };
            // SAFETY: both sides only make system calls and end.
            match unsafe { clone_process(&request) } {
                Ok(Cloned::Child) if become_root().is_ok() => start(program, copies),
                Ok(Cloned::Child) | Err(_) => fail(control, NO_USER_NAMESPACE),
                Ok(Cloned::Parent { pid, .. }) => {
                    let written = write_pid(report, pid);
                    exit_now(i32::from(written.is_err()))
                }
            }
        })?;
        drop(writer);
        let mut pid = [0; 4];
        let read = rustix::io::read(&reader, &mut pid);
        let doing = || "make the process in its user namespace";
        if read.doing(doing)? != pid.len() {
            return Err(Errno::CHILD).doing(doing);
        }
        let pid = Pid::from_raw(i32::from_ne_bytes(pid))
            .ok_or(Errno::CHILD)
            .doing(doing)?;
        // The process is a child of the agent, so its id is its own until the agent reaps it.
        Ok((pid, pidfd_open(pid, PidfdFlags::empty()).doing(doing)?))
    }
}

fn start_in_new_user_namespace(program: RawFd, copies: &[(RawFd, RawFd)]) -> ! {
    let control = copies
        .iter()
        .find(|(_, number)| *number == fd::CONTROL)
        .map_or(-1, |copy| copy.0);
    // Without its maps the process would lose all capabilities on execve(2).
    if read_byte(control).is_err() || become_root().is_err() {
        fail(control, NO_USER_NAMESPACE);
    }
    start(program, copies)
}

/// Executes the agent's binary with its descriptors in place.
fn start(program: RawFd, copies: &[(RawFd, RawFd)]) -> ! {
    const ARGUMENTS: [&CStr; 2] = [c"rvm-agent", c"container-init"];
    for (from, to) in copies {
        if copy_fd(*from, *to).is_err() {
            exit_now(crate::init::EXIT_FAILED);
        }
    }
    let arguments = [
        ARGUMENTS[0].as_ptr(),
        ARGUMENTS[1].as_ptr(),
        std::ptr::null(),
    ];
    // SAFETY: both arrays end in null, and the strings are static.
    unsafe { execute_fd(program, &arguments, &[std::ptr::null()]) };
    fail(fd::CONTROL, NO_EXECUTION)
}

fn fail(control: RawFd, report: &CStr) -> ! {
    let report = report.to_bytes();
    // SAFETY: a write(2) from a buffer of the given length.
    unsafe { libc::write(control, report.as_ptr().cast(), report.len()) };
    exit_now(crate::init::EXIT_FAILED)
}

/// Runs a closure in other namespaces and returns to the agent's own. The agent is root in the
/// guest's user namespace and so may enter any; a pid namespace is that of children only.
///
/// The closure awaits nothing: the whole agent is in the other namespaces meanwhile.
fn in_namespaces<T>(namespaces: &[OpenNamespace], run: impl FnOnce() -> T) -> Result<T, OsError> {
    let own = namespaces
        .iter()
        .map(|other| OpenNamespace::open(Path::new(own_namespace(other.flag)), other.flag))
        .collect::<Result<Vec<_>, _>>()?;
    let entered = namespaces
        .iter()
        .try_for_each(|other| enter_namespaces(other.fd.as_fd(), other.flag))
        .doing(|| "join a namespace");
    let result = entered.map(|()| run());
    for own in &own {
        if let Err(errno) = enter_namespaces(own.fd.as_fd(), own.flag) {
            power::reset(&format!(
                "the agent cannot return to its namespaces: {errno}"
            ));
        }
    }
    result
}

fn own_namespace(flag: u64) -> &'static str {
    match flag as i32 {
        libc::CLONE_NEWNET => "/proc/self/ns/net",
        libc::CLONE_NEWIPC => "/proc/self/ns/ipc",
        libc::CLONE_NEWUTS => "/proc/self/ns/uts",
        libc::CLONE_NEWCGROUP => "/proc/self/ns/cgroup",
        libc::CLONE_NEWTIME => "/proc/self/ns/time",
        _ => "/proc/self/ns/pid",
    }
}
