//! The process of a hook of config.json: started with its standard input in a memory file, waited
//! for, its output kept for a message.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::seccomp;

/// How much of a hook's output ends up in a message, in bytes.
const MAX_OUTPUT: u64 = 4096;

/// A hook as config.json describes it.
#[derive(Clone, Copy, Debug)]
pub struct Hook<'a> {
    /// The path of the program.
    pub path: &'a Path,
    /// Its arguments, the name of the program first; without any the path is the name.
    pub args: &'a [String],
    /// Its whole environment, as `NAME=value`; the caller's if `None`.
    pub env: Option<&'a [String]>,
    /// Its working directory; the caller's if `None`.
    pub directory: Option<&'a Path>,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// The system call filter that it runs under, with the flags to install it; see
    /// [`seccomp::install`].
    pub filter: Option<(&'a [u8], u64)>,
}

/// A hook that runs. Dropping it kills it.
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    timeout: Option<Duration>,
    stdout: File,
    stderr: File,
}

/// How a hook ended. Its text has the end and the beginning of the hook's output.
#[derive(Debug)]
pub struct End {
    status: ExitStatus,
    exceeded: Option<Duration>,
    stdout: String,
    stderr: String,
}

impl Running {
    /// Starts a hook, with `input` to read from its standard input.
    pub fn start(hook: &Hook<'_>, input: &[u8]) -> io::Result<Self> {
        let mut stdin = memory_file()?;
        stdin.write_all(input)?;
        stdin.rewind()?;
        let (stdout, stderr) = (memory_file()?, memory_file()?);
        let mut command = Command::new(hook.path);
        if let Some((name, args)) = hook.args.split_first() {
            command.arg0(name).args(args);
        }
        if let Some(directory) = hook.directory {
            command.current_dir(directory);
        }
        if let Some(env) = hook.env {
            let entries = env.iter().filter_map(|entry| entry.split_once('='));
            command.env_clear().envs(entries);
        }
        command
            .stdin(stdin)
            .stdout(Stdio::from(stdout.try_clone()?))
            .stderr(Stdio::from(stderr.try_clone()?));
        if let Some((filter, flags)) = hook.filter {
            filter_calls(&mut command, filter.to_owned(), flags);
        }
        let child = command.spawn()?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self {
            child,
            pidfd,
            timeout: hook.timeout,
            stdout,
            stderr,
        })
    }

    /// Waits for the end, with the calling thread; kills the hook at its timeout.
    pub fn wait(self) -> io::Result<End> {
        let in_time = match self.timeout {
            None => true,
            Some(timeout) => ends_within(&self.pidfd, timeout)?,
        };
        self.finish(in_time)
    }

    /// Waits for the end in a tokio runtime; kills the hook at its timeout.
    #[cfg(feature = "tokio")]
    pub async fn end(self) -> io::Result<End> {
        use std::os::fd::AsFd as _;
        let ended = crate::readiness::Readable::new(self.pidfd.as_fd())?;
        let wait = ended.read(|_| Ok(()));
        let in_time = match self.timeout {
            None => wait.await.map(|()| true)?,
            Some(timeout) => match tokio::time::timeout(timeout, wait).await {
                Ok(ended) => ended.map(|()| true)?,
                Err(_) => false,
            },
        };
        self.finish(in_time)
    }

    fn finish(mut self, in_time: bool) -> io::Result<End> {
        if !in_time {
            // Fails if the hook has ended since.
            let _ = self.child.kill();
        }
        Ok(End {
            status: self.child.wait()?,
            exceeded: self.timeout.filter(|_| !in_time),
            stdout: beginning(&mut self.stdout),
            stderr: beginning(&mut self.stderr),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing after `finish`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Whether the hook ended by itself, with exit status 0.
    pub fn is_success(&self) -> bool {
        self.exceeded.is_none() && self.status.success()
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.exceeded, self.status.code(), self.status.signal()) {
            (Some(timeout), ..) => {
                write!(f, "killed after its timeout of {} s", timeout.as_secs())?;
            }
            (None, Some(code), _) => write!(f, "exit status {code}")?,
            (None, None, Some(signal)) => {
                write!(f, "signal: {}", signal_name(signal))?;
                if self.status.core_dumped() {
                    write!(f, " (core dumped)")?;
                }
            }
            (None, None, None) => write!(f, "{}", self.status)?,
        }
        write!(f, ", stdout: {}, stderr: {}", self.stdout, self.stderr)
    }
}

/// A signal in the words of runc's messages, which are those of Go's syscall package.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Has a command's process install a filter right before it executes the program.
#[expect(unsafe_code, reason = "pre_exec")]
fn filter_calls(command: &mut Command, filter: Vec<u8>, flags: u64) {
    let install = move || Ok(seccomp::install(&filter, flags)?);
    // SAFETY: between fork and execve the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(install) };
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> rustix::io::Result<bool> {
    let limit = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}

fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?.into())
}

fn beginning(file: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read is left out of the message.
    let _ = file
        .rewind()
        .and_then(|()| file.take(MAX_OUTPUT).read_to_end(&mut text));
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: Option<Duration>) -> End {
        let args = ["sh", "-c", script].map(String::from);
        let hook = Hook {
            path: Path::new("/bin/sh"),
            args: &args,
            env: Some(&["GREETING=hello".to_owned()]),
            directory: None,
            timeout,
            filter: None,
        };
        Running::start(&hook, b"state").unwrap().wait().unwrap()
    }

    #[test]
    fn a_hook_reads_the_state_and_has_exactly_its_environment() {
        let end = run("cat; echo \" $GREETING $HOME\" >&2", None);
        assert!(end.is_success());
        assert_eq!(
            end.to_string(),
            "exit status 0, stdout: state, stderr:  hello"
        );
    }

    #[test]
    fn a_hook_that_ends_by_a_signal_has_failed() {
        let end = run("kill -9 $$", Some(Duration::from_secs(10)));
        assert!(!end.is_success());
        assert_eq!(end.to_string(), "signal: killed, stdout: , stderr: ");
        let end = run("kill -34 $$", None);
        assert_eq!(end.to_string(), "signal: signal 34, stdout: , stderr: ");
    }

    #[test]
    fn a_hook_is_killed_at_its_timeout() {
        let end = run("echo begun; exec sleep 60", Some(Duration::from_secs(1)));
        assert!(!end.is_success());
        assert_eq!(
            end.to_string(),
            "killed after its timeout of 1 s, stdout: begun, stderr: "
        );
    }

    #[cfg(feature = "tokio")]
    #[tokio::test]
    async fn a_hook_is_waited_for_in_a_runtime() {
        let hook = Hook {
            path: Path::new("/bin/false"),
            args: &[],
            env: Some(&[]),
            directory: Some(Path::new("/")),
            timeout: Some(Duration::from_secs(10)),
            filter: None,
        };
        let end = Running::start(&hook, b"").unwrap().end().await.unwrap();
        assert_eq!(end.to_string(), "exit status 1, stdout: , stderr: ");
    }
}
