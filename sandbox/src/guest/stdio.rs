//! The standard streams of a process in the guest, carried over connections of their own.
//!
//! Each direction is copied by a thread that blocks: what it holds is one buffer, so a slow reader
//! stops the writer. The descriptors are not ours alone, so they are left as they are and never set
//! not to block.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rvm_protocol::STREAM_PORT;
use rvm_protocol::agent::extra_descriptor::Kind;
use rvm_protocol::agent::{ExtraDescriptor, Stdio};
use tokio::sync::oneshot;

use crate::dir::SandboxDir;
use crate::guest::descriptors::{self, Extra};
use crate::host::terminal::WindowSize;

/// What is copied at a time. A vsock packet holds no more.
pub(crate) const BUFFER: usize = 64 * 1024;

/// A thread needs its buffer and little else.
const STACK: usize = BUFFER + 32 * 1024;

/// The streams could not be connected.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect the container's {stream}")]
pub struct StdioError {
    stream: &'static str,
    #[source]
    source: io::Error,
}

fn failed(stream: &'static str) -> impl FnOnce(io::Error) -> StdioError {
    move |source| StdioError { stream, source }
}

/// The host's ends of a process's streams.
pub enum HostStdio {
    /// Three streams.
    Streams {
        /// Read for the process.
        stdin: OwnedFd,
        /// Written with what the process writes.
        stdout: OwnedFd,
        /// The same for its errors.
        stderr: OwnedFd,
    },
    /// A terminal, in raw mode, for both directions.
    Terminal {
        /// Read for the process.
        input: OwnedFd,
        /// Written with what the process writes.
        output: OwnedFd,
        /// Its size.
        size: WindowSize,
    },
    /// Either, and descriptors beyond the three.
    Extended {
        /// Which.
        stdio: Box<Self>,
        /// From 3 on.
        extra: Vec<Extra>,
    },
}

impl HostStdio {
    /// The same, and descriptors beyond the three.
    pub fn with(self, extra: Vec<Extra>) -> Self {
        if extra.is_empty() {
            return self;
        }
        Self::Extended {
            stdio: Box::new(self),
            extra,
        }
    }
}

/// Streams that are being copied.
#[derive(Default)]
pub struct Relay {
    outputs: Vec<oneshot::Receiver<()>>,
}

impl Relay {
    /// Connects the streams to the guest and starts to copy. The result names them to the agent.
    pub fn start(sandbox: &SandboxDir, host: HostStdio) -> Result<(Self, Stdio), StdioError> {
        let mut relay = Self::default();
        let mut stdio = Stdio::default();
        match host {
            HostStdio::Streams {
                stdin,
                stdout,
                stderr,
            } => {
                stdio.stdin = relay.input(sandbox, "standard input", stdin)?;
                stdio.stdout = relay.output(sandbox, "standard output", stdout)?;
                stdio.stderr = relay.output(sandbox, "standard error", stderr)?;
            }
            HostStdio::Terminal {
                input,
                output,
                size,
            } => {
                let (id, to_guest) = open_stream(sandbox).map_err(failed("terminal"))?;
                let from_guest = to_guest.try_clone().map_err(failed("terminal"))?;
                spawn("terminal", move || copy_to_guest(&input, &to_guest))?;
                relay.spawn_output("terminal", from_guest, output)?;
                stdio.terminal = true;
                stdio.stdin = id;
                stdio.rows = size.rows.into();
                stdio.cols = size.cols.into();
            }
            HostStdio::Extended { stdio: host, extra } => {
                (relay, stdio) = Self::start(sandbox, *host)?;
                for extra in extra {
                    let kind = extra.kind().unwrap_or_default();
                    stdio.extra.push(ExtraDescriptor {
                        stream: relay.extra(sandbox, extra)?,
                        kind: kind.into(),
                        ..Default::default()
                    });
                }
            }
        }
        Ok((relay, stdio))
    }

    /// Returns when everything the process wrote has been passed on.
    pub async fn drained(self) {
        for output in self.outputs {
            // An error means that the thread has ended too.
            let _ = output.await;
        }
    }

    fn input(
        &self,
        sandbox: &SandboxDir,
        name: &'static str,
        fd: OwnedFd,
    ) -> Result<u64, StdioError> {
        if is_null(&fd) {
            return Ok(0);
        }
        let (id, stream) = open_stream(sandbox).map_err(failed(name))?;
        spawn(name, move || copy_to_guest(&fd, &stream))?;
        Ok(id)
    }

    fn output(
        &mut self,
        sandbox: &SandboxDir,
        name: &'static str,
        fd: OwnedFd,
    ) -> Result<u64, StdioError> {
        if is_null(&fd) {
            return Ok(0);
        }
        let (id, stream) = open_stream(sandbox).map_err(failed(name))?;
        self.spawn_output(name, stream, fd)?;
        Ok(id)
    }

    fn extra(&mut self, sandbox: &SandboxDir, extra: Extra) -> Result<u64, StdioError> {
        let name = "extra descriptor";
        let Some(kind) = extra.kind() else {
            return Ok(0);
        };
        let (id, stream) = open_stream(sandbox).map_err(failed(name))?;
        match kind {
            Kind::INPUT => spawn(name, move || descriptors::copy_input(&extra, &stream))?,
            Kind::OUTPUT => {
                self.spawn_drained(name, move || descriptors::copy_output(&extra, &stream))?;
            }
            Kind::SOCKET => {
                let extra = Arc::new(extra);
                let (same, to_guest) = (extra.clone(), stream.try_clone().map_err(failed(name))?);
                spawn(name, move || descriptors::copy_input(&same, &to_guest))?;
                self.spawn_drained(name, move || descriptors::copy_socket(&extra, &stream))?;
            }
        }
        Ok(id)
    }

    fn spawn_output(
        &mut self,
        name: &'static str,
        stream: UnixStream,
        fd: OwnedFd,
    ) -> Result<(), StdioError> {
        self.spawn_drained(name, move || copy_from_guest(&stream, &fd))
    }

    fn spawn_drained(
        &mut self,
        name: &'static str,
        copy: impl FnOnce() + Send + 'static,
    ) -> Result<(), StdioError> {
        let (done, drained) = oneshot::channel();
        spawn(name, move || {
            copy();
            // Nobody may wait any more.
            let _ = done.send(());
        })?;
        self.outputs.push(drained);
        Ok(())
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), StdioError> {
    let short = name.rsplit(' ').next().unwrap_or(name);
    let builder = thread::Builder::new()
        .name(short.to_owned())
        .stack_size(STACK);
    builder.spawn(work).map(|_| ()).map_err(failed(name))
}

/// Opens a connection for a stream and names it. 0 names /dev/null, which needs none.
pub fn open_stream(sandbox: &SandboxDir) -> io::Result<(u64, UnixStream)> {
    let mut id = [0; 8];
    while id == [0; 8] {
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    }
    let mut stream = sandbox.connect(STREAM_PORT)?;
    stream.write_all(&id)?;
    Ok((u64::from_be_bytes(id), stream))
}

/// Whether a descriptor is /dev/null: the process then gets the guest's, and sees what it would see
/// in a container of runc's.
pub(crate) fn is_null(fd: &OwnedFd) -> bool {
    const NULL: (u32, u32) = (1, 3);
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == NULL
    })
}

/// Copies until the host's end has no more or the guest takes no more.
fn copy_to_guest(from: &OwnedFd, to: &UnixStream) {
    descriptors::copy_while_wanted(from, to);
    // Closed already if the guest went first.
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies until the guest's end has no more or the host takes no more.
pub(crate) fn copy_from_guest(from: &UnixStream, to: &OwnedFd) {
    copy(from.as_fd(), to.as_fd());
    // So that a writer in the guest hears that nobody reads.
    let _ = from.shutdown(Shutdown::Both);
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut buffer = [0; BUFFER];
    while copy_some(from, to, &mut buffer) {}
}

/// Copies what can be read at once, waiting for something. False at the end of either side.
pub(crate) fn copy_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> bool {
    // A terminal whose other end is closed fails to be read, which is its end too.
    let read = retry(from, PollFlags::IN, || rustix::io::read(from, &mut *buffer));
    let Ok(length @ 1..) = read else { return false };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match retry(to, PollFlags::OUT, || rustix::io::write(to, rest)) {
            Ok(written) => rest = &rest[written..],
            Err(_) => return false,
        }
    }
    true
}

/// Repeats a call that was interrupted, and waits where somebody else has set the descriptor not to
/// block.
fn retry<T>(
    fd: BorrowedFd<'_>,
    wanted: PollFlags,
    mut call: impl FnMut() -> Result<T, Errno>,
) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::from_borrowed_fd(fd, wanted)], None) {
                Err(Errno::INTR) | Ok(_) => {}
                Err(error) => return Err(error),
            },
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn only_dev_null_is_null() {
        assert!(is_null(&File::open("/dev/null").unwrap().into()));
        assert!(!is_null(&File::open("/dev/zero").unwrap().into()));
        assert!(!is_null(&tempfile::tempfile().unwrap().into()));
    }

    #[test]
    fn the_end_of_input_reaches_the_guest_after_the_data() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (read, mut write) = io::pipe().unwrap();
        let thread = thread::spawn(move || copy_to_guest(&read.into(), &ours));
        write.write_all(b"hello").unwrap();
        drop(write);
        let mut received = String::new();
        theirs.read_to_string(&mut received).unwrap();
        assert_eq!(received, "hello");
        thread.join().unwrap();
    }

    #[test]
    fn a_host_that_stops_reading_is_told_to_the_guest() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let thread = thread::spawn(move || copy_from_guest(&ours, &write.into()));
        theirs.write_all(b"nobody reads this").unwrap();
        thread.join().unwrap();
        assert_eq!(
            theirs.write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_descriptor_set_not_to_block_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || copy_to_guest(&host.into(), &ours));
        thread::sleep(std::time::Duration::from_millis(20));
        (&guest).write_all(b"late").unwrap();
        drop(guest);
        let mut received = String::new();
        theirs.read_to_string(&mut received).unwrap();
        assert_eq!(received, "late");
        thread.join().unwrap();
    }
}
