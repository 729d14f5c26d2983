//! One hook: started with its standard input in a memory file, waited for, its output kept for a
//! message.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::host::readable::Readable;

/// How much of a hook's output ends up in a message, in bytes.
const MAX_OUTPUT: u64 = 4096;

/// A hook that runs. Dropping it ends it.
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    limit: Option<Duration>,
    stdout: File,
    stderr: File,
}

/// How a hook ended.
#[derive(Debug)]
pub struct End {
    status: ExitStatus,
    /// The limit that it ran past.
    late: Option<Duration>,
    stdout: String,
    stderr: String,
}

impl Running {
    /// Starts a hook in `dir`, with exactly the environment that it names.
    pub fn start(hook: &Hook, input: &[u8], dir: &Path) -> io::Result<Self> {
        let mut stdin = memory_file()?;
        stdin.write_all(input)?;
        stdin.rewind()?;
        let (stdout, stderr) = (memory_file()?, memory_file()?);
        let mut command = Command::new(hook.path());
        if let Some((name, args)) = hook.args().as_deref().and_then(<[_]>::split_first) {
            command.arg0(name).args(args);
        }
        let env = hook.env().iter().flatten();
        command
            .env_clear()
            .envs(env.filter_map(|entry| entry.split_once('=')))
            // Whoever made the bundle may have taken it away before the container is deleted.
            .current_dir(if dir.is_dir() { dir } else { Path::new("/") })
            .stdin(stdin)
            .stdout(Stdio::from(stdout.try_clone()?))
            .stderr(Stdio::from(stderr.try_clone()?));
        let child = command.spawn()?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let seconds = hook.timeout().and_then(|limit| u64::try_from(limit).ok());
        Ok(Self {
            child,
            pidfd,
            limit: seconds.map(Duration::from_secs),
            stdout,
            stderr,
        })
    }

    /// Waits for its end, which comes at the latest with its time limit.
    pub async fn end(self) -> io::Result<End> {
        let ended = Readable::new(self.pidfd.as_fd())?;
        let wait = ended.read(|_| Ok(()));
        let in_time = match self.limit {
            None => wait.await.map(|()| true)?,
            Some(limit) => match tokio::time::timeout(limit, wait).await {
                Ok(ended) => ended.map(|()| true)?,
                Err(_) => false,
            },
        };
        self.finish(in_time)
    }

    fn finish(mut self, in_time: bool) -> io::Result<End> {
        if !in_time {
            // It may have ended in this moment.
            let _ = self.child.kill();
        }
        Ok(End {
            status: self.child.wait()?,
            late: self.limit.filter(|_| !in_time),
            stdout: beginning(&mut self.stdout),
            stderr: beginning(&mut self.stderr),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Whether it did what it should.
    pub fn is_success(&self) -> bool {
        self.late.is_none() && self.status.success()
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.late, self.status.code(), self.status.signal()) {
            (Some(limit), ..) => write!(f, "killed after its timeout of {} s", limit.as_secs())?,
            (None, Some(code), _) => write!(f, "exit status {code}")?,
            (None, None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None, None) => write!(f, "{}", self.status)?,
        }
        write!(f, ", stdout: {}, stderr: {}", self.stdout, self.stderr)
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
