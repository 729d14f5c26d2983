//! A child that is process 1 of a pid namespace of its own, and starts in a control group.
//!
//! [`std::process::Command`] starts a child in its parent's groups. To move it afterwards, the
//! kernel waits for a grace period of RCU: some ten milliseconds of every start.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;

use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use rvm_sys::clone::{CloneRequest, Cloned, clone_process, copy_fd, execute, exit_now};

/// What a child executes.
pub(super) struct Program<'a> {
    /// Its path, which is also its name to itself.
    pub(super) path: &'a Path,
    /// The arguments after its name.
    pub(super) arguments: &'a [&'a CStr],
    /// The whole environment, as `NAME=value`.
    pub(super) environment: &'a [&'a CStr],
    /// Standard input, output and error. It inherits what else is not closed on exec.
    pub(super) streams: [BorrowedFd<'a>; 3],
}

/// A child. Dropping it kills it and waits for its end.
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// Known once it has been waited for.
    status: Option<ExitStatus>,
}

impl Child {
    /// Executes a program in the control group of this directory, or in the caller's. Killing the
    /// child kills all others of its pid namespace.
    #[expect(unsafe_code, reason = "clone3")]
    pub(super) fn start(program: &Program<'_>, group: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let path = CString::new(program.path.as_os_str().as_bytes())?;
        let arguments = pointers([path.as_c_str()].iter().chain(program.arguments));
        let environment = pointers(program.environment);
        // Above the standard streams, where they could overwrite one another.
        let parked = program.streams.map(|fd| fcntl_dupfd_cloexec(fd, 3));
        let [input, output, error] = parked;
        let streams = [input?, output?, error?];
        let (failure, report) = pipe_with(PipeFlags::CLOEXEC)?;
        let request = CloneRequest {
            flags: libc::CLONE_NEWPID as u64,
            cgroup: group,
        };
        // SAFETY: the child makes system calls alone, on memory that was prepared above, and ends
        // in this arm.
        match unsafe { clone_process(&request) }? {
            Cloned::Child => {
                let streams = streams.each_ref().map(AsRawFd::as_raw_fd);
                let errno = become_program(streams, &path, &arguments, &environment);
                let _ = rustix::io::write(&report, &errno.raw_os_error().to_ne_bytes());
                exit_now(1)
            }
            Cloned::Parent { pid, pidfd } => {
                drop(report);
                let child = Self {
                    pid,
                    pidfd,
                    status: None,
                };
                reported(failure)?;
                Ok(child)
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Becomes readable when the child has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends SIGKILL, if the child has not been waited for.
    pub(super) fn kill(&self) -> io::Result<()> {
        match self.status {
            None => Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?),
            Some(_) => Ok(()),
        }
    }

    /// Waits until the child has ended.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.reap(WaitOptions::empty()).map(drop)
    }

    /// The child's exit status, if it has ended.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitOptions::NOHANG)
    }

    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = retry_on_intr(|| waitpid(Some(self.pid), options))?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill().and_then(|()| self.wait());
    }
}

/// Pointers to strings, ended by null.
fn pointers<'a>(strings: impl IntoIterator<Item = &'a &'a CStr>) -> Vec<*const libc::c_char> {
    let pointers = strings.into_iter().map(|text| text.as_ptr());
    pointers.chain([ptr::null()]).collect()
}

/// Becomes the program, without the signals that a monitor blocks blocked, and without the one that
/// Rust's runtime ignores ignored. Returns only on failure. Makes system calls alone.
#[expect(unsafe_code, reason = "execve, and signals of the child")]
fn become_program(
    streams: [RawFd; 3],
    path: &CStr,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> Errno {
    for (from, to) in streams.into_iter().zip(0..) {
        if let Err(errno) = copy_fd(from, to) {
            return errno;
        }
    }
    // SAFETY: the set is written before it is read, and the arrays end in null and point to strings
    // that the caller holds.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        execute(path, arguments, environment)
    }
}

/// Fails with the reason if a child could not become its program. The pipe closes without a word
/// when it has.
fn reported(failure: OwnedFd) -> io::Result<()> {
    let mut errno = Vec::new();
    File::from(failure).read_to_end(&mut errno)?;
    match errno.try_into() {
        Ok(errno) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(path: &str, arguments: &[&CStr]) -> io::Result<(ExitStatus, String)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let null = File::open("/dev/null")?;
        let program = Program {
            path: Path::new(path),
            arguments,
            environment: &[c"WORD=only"],
            streams: [null.as_fd(), writer.as_fd(), null.as_fd()],
        };
        let mut child = Child::start(&program, None)?;
        drop(writer);
        let mut output = String::new();
        File::from(reader).read_to_string(&mut output)?;
        child.wait()?;
        Ok((child.try_wait()?.unwrap(), output))
    }

    #[test]
    fn a_child_is_process_one_with_its_environment_alone_and_the_next_child_is_not() {
        let script = c"echo $$ $WORD $HOME; exit 3";
        let (status, output) = run("/bin/sh", &[c"-c", script]).unwrap();
        assert_eq!((status.code(), output.as_str()), (Some(3), "1 only\n"));
        let mut other = std::process::Command::new("sh");
        let output = other.args(["-c", "echo $$"]).output().unwrap();
        assert_ne!(output.stdout, b"1\n");
    }

    #[test]
    fn a_child_has_no_signal_blocked_and_dies_of_a_broken_pipe() {
        let (_, output) = run("/bin/cat", &[c"/proc/thread-self/status"]).unwrap();
        let set = |name: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        assert_eq!(set("SigBlk:"), 0);
        assert_eq!(set("SigIgn:") & (1 << (libc::SIGPIPE - 1)), 0);
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_an_error_and_leaves_no_child() {
        let error = run("/etc/passwd", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
