//! Relays the standard streams of a process in the guest, each over its own vsock connection.
//!
//! A blocking thread copies each direction with one buffer, so that a slow reader stops the writer.
//! Other processes share the descriptors, so this never sets O_NONBLOCK on them.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rvm_protocol::STREAM_PORT;
use rvm_protocol::agent::extra_descriptor::Kind;
use rvm_protocol::agent::{ExtraDescriptor, Stdio};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::checkpoint::Streams;
use crate::dir::SandboxDir;
use crate::guest::descriptors::{self, ExtraFd};
use crate::guest::passed_file::PassedFile;
use crate::host::terminal::WindowSize;

/// In bytes; the largest payload of a vsock packet.
pub(crate) const BUFFER: usize = 64 * 1024;

/// The stack of a copying thread in bytes: its buffer and little else.
const STACK: usize = BUFFER + 32 * 1024;

/// How long the last output of a container that has ended may take: it is in buffers of the guest
/// and of its vsock, some hundred KiB.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The host's ends of a process's streams, each owned until the process's end.
pub enum HostStdio {
    /// Without a terminal.
    Streams {
        /// Read, and sent to the process.
        stdin: OwnedFd,
        /// Receives the process's output.
        stdout: OwnedFd,
        /// Receives the process's errors.
        stderr: OwnedFd,
    },
    /// A terminal in raw mode.
    Terminal {
        /// Read, and sent to the process.
        input: OwnedFd,
        /// Receives the process's output.
        output: OwnedFd,
        /// The initial size of the process's terminal.
        size: WindowSize,
        /// See the protocol's `Stdio`.
        plain_line_feeds: bool,
    },
    /// One of the above with more descriptors.
    Extended {
        /// `Streams` or `Terminal`.
        stdio: Box<Self>,
        /// The process gets them as descriptors from 3 on.
        extra: Vec<ExtraFd>,
    },
}

impl HostStdio {
    /// Adds descriptors from 3 on.
    pub fn with(self, extra: Vec<ExtraFd>) -> Self {
        if extra.is_empty() {
            return self;
        }
        Self::Extended {
            stdio: Box::new(self),
            extra,
        }
    }
}

/// Running copies of streams.
#[derive(Default)]
pub struct Relay {
    outputs: Vec<Copy>,
    /// Standard error, until it has ended.
    errors: Option<Copy>,
    files: Vec<PassedFile>,
}

/// A running copy of output.
struct Copy {
    /// Closed at the end of the copy.
    done: oneshot::Receiver<()>,
    from: UnixStream,
    /// The host's descriptor, which the copy closes at its end.
    to: Weak<dyn AsFd + Send + Sync>,
}

impl Copy {
    /// Whether the host's reader is slower than the guest.
    fn is_held_up(&self) -> bool {
        let Some(to) = self.to.upgrade() else {
            return false;
        };
        let to = to.as_fd();
        let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())) == Ok(0)
    }
}

impl Relay {
    /// Connects the streams to the guest and starts to copy. The agent needs the returned ids.
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
                relay.errors = match stdio.stderr {
                    0 => None,
                    _ => relay.outputs.pop(),
                };
            }
            HostStdio::Terminal {
                input,
                output,
                size,
                plain_line_feeds,
            } => {
                let (id, to_guest) = open_stream(sandbox).map_err(failed("terminal"))?;
                let from_guest = to_guest.try_clone().map_err(failed("terminal"))?;
                spawn("terminal", move || copy_to_guest(&input, &to_guest))?;
                relay.spawn_output("terminal", from_guest, output)?;
                stdio.terminal = true;
                stdio.stdin = id;
                stdio.rows = size.rows.into();
                stdio.cols = size.cols.into();
                stdio.plain_line_feeds = plain_line_feeds;
            }
            HostStdio::Extended { stdio: host, extra } => {
                (relay, stdio) = Self::start(sandbox, *host)?;
                for extra in extra {
                    stdio.extra.push(relay.extra(sandbox, extra)?);
                }
            }
        }
        Ok((relay, stdio))
    }

    /// Connects the streams of a process that was saved, by the ids that they had, and starts to
    /// copy. Descriptors from 3 on are not connected.
    pub fn go_on(sandbox: &SandboxDir, host: HostStdio, ids: &Streams) -> Result<Self, StdioError> {
        let mut relay = Self::default();
        match host {
            HostStdio::Streams {
                stdin,
                stdout,
                stderr,
            } => {
                let name = "standard input";
                if let Some(stream) = open_again(sandbox, ids.stdin).map_err(failed(name))? {
                    spawn(name, move || copy_to_guest(&stdin, &stream))?;
                }
                for (name, id, fd) in [
                    ("standard output", ids.stdout, stdout),
                    ("standard error", ids.stderr, stderr),
                ] {
                    if let Some(stream) = open_again(sandbox, id).map_err(failed(name))? {
                        relay.spawn_output(name, stream, fd)?;
                    }
                }
                relay.errors = match ids.stderr {
                    0 => None,
                    _ => relay.outputs.pop(),
                };
            }
            HostStdio::Terminal { input, output, .. } => {
                let name = "terminal";
                if let Some(to_guest) = open_again(sandbox, ids.stdin).map_err(failed(name))? {
                    let from_guest = to_guest.try_clone().map_err(failed(name))?;
                    spawn(name, move || copy_to_guest(&input, &to_guest))?;
                    relay.spawn_output(name, from_guest, output)?;
                }
            }
            HostStdio::Extended { stdio, .. } => return Self::go_on(sandbox, *stdio, ids),
        }
        Ok(relay)
    }

    /// The ids of a process's standard streams.
    pub fn ids(stdio: &Stdio) -> Streams {
        Streams {
            terminal: stdio.terminal,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
        }
    }

    /// Returns when standard error has ended: neither the process nor a child of it has it open any
    /// more. Never without such a stream. Cancel safe.
    pub async fn errors_ended(&mut self) {
        match &mut self.errors {
            Some(errors) => {
                let _ = (&mut errors.done).await;
                self.errors = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Returns when all output of the process has been written to the host's descriptors.
    pub async fn drained(self) {
        for output in self.outputs.into_iter().chain(self.errors) {
            // An error means that the thread has ended, too.
            let _ = output.done.await;
        }
    }

    /// As [`Self::drained`], for a container that has ended. A guest that keeps a stream of such a
    /// container open, or has output without an end, is not listened to for longer than
    /// [`REST_TIMEOUT`]; time in which a reader holds the output up does not count.
    pub async fn settled(self) {
        self.settled_within(REST_TIMEOUT).await;
    }

    async fn settled_within(self, limit: Duration) {
        let (mut rest, interval) = (limit, limit / 20);
        for mut output in self.outputs.into_iter().chain(self.errors) {
            while !rest.is_zero() {
                if timeout(interval, &mut output.done).await.is_ok() {
                    break;
                }
                if !output.is_held_up() {
                    rest = rest.saturating_sub(interval);
                }
            }
            if rest.is_zero() {
                // What has arrived is still copied.
                let _ = output.from.shutdown(Shutdown::Both);
                let _ = output.done.await;
            }
        }
    }

    fn input(
        &self,
        sandbox: &SandboxDir,
        name: &'static str,
        fd: OwnedFd,
    ) -> Result<u64, StdioError> {
        let Some((id, stream)) = connect(sandbox, name, &fd)? else {
            return Ok(0);
        };
        spawn(name, move || copy_to_guest(&fd, &stream))?;
        Ok(id)
    }

    fn output(
        &mut self,
        sandbox: &SandboxDir,
        name: &'static str,
        fd: OwnedFd,
    ) -> Result<u64, StdioError> {
        let Some((id, stream)) = connect(sandbox, name, &fd)? else {
            return Ok(0);
        };
        self.spawn_output(name, stream, fd)?;
        Ok(id)
    }

    fn extra(
        &mut self,
        sandbox: &SandboxDir,
        extra: ExtraFd,
    ) -> Result<ExtraDescriptor, StdioError> {
        let name = "extra descriptor";
        let Some(kind) = extra.kind() else {
            return Ok(ExtraDescriptor::default());
        };
        if kind == Kind::FILE {
            let passed = PassedFile::share(sandbox, extra.file());
            let (file, descriptor) = passed.map_err(failed(name))?;
            self.files.push(file);
            return Ok(descriptor);
        }
        let (id, stream) = open_stream(sandbox).map_err(failed(name))?;
        match kind {
            Kind::INPUT => spawn(name, move || descriptors::copy_input(&extra, &stream))?,
            Kind::OUTPUT => self.spawn_copy(name, stream, extra, descriptors::copy_output)?,
            // A file has no stream.
            Kind::SOCKET | Kind::FILE => {
                let extra = Arc::new(extra);
                let (same, to_guest) = (extra.clone(), stream.try_clone().map_err(failed(name))?);
                spawn(name, move || descriptors::copy_input(&same, &to_guest))?;
                self.spawn_copy(name, stream, extra, |extra, from| {
                    descriptors::copy_socket(extra, from);
                })?;
            }
        }
        Ok(ExtraDescriptor {
            stream: id,
            kind: kind.into(),
            ..Default::default()
        })
    }

    fn spawn_output(
        &mut self,
        name: &'static str,
        stream: UnixStream,
        fd: OwnedFd,
    ) -> Result<(), StdioError> {
        self.spawn_copy(name, stream, fd, |fd, from| copy_from_guest(from, fd))
    }

    fn spawn_copy<T: AsFd + Send + Sync + 'static>(
        &mut self,
        name: &'static str,
        from: UnixStream,
        to: T,
        copy: impl FnOnce(&T, &UnixStream) + Send + 'static,
    ) -> Result<(), StdioError> {
        let same = from.try_clone().map_err(failed(name))?;
        let to = Arc::new(to);
        let weak: Weak<T> = Arc::downgrade(&to);
        let (finished, done) = oneshot::channel();
        spawn(name, move || {
            copy(&to, &from);
            drop(to);
            // The receiver may be gone.
            let _ = finished.send(());
        })?;
        self.outputs.push(Copy {
            done,
            from: same,
            to: weak,
        });
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

/// Opens a stream's connection, which /dev/null does not need.
fn connect(
    sandbox: &SandboxDir,
    name: &'static str,
    fd: &OwnedFd,
) -> Result<Option<(u64, UnixStream)>, StdioError> {
    if is_null(fd) {
        return Ok(None);
    }
    open_stream(sandbox).map(Some).map_err(failed(name))
}

/// Opens a connection for a stream and sends its random id. Id 0 means /dev/null, without a
/// connection.
pub fn open_stream(sandbox: &SandboxDir) -> io::Result<(u64, UnixStream)> {
    let mut id = [0; 8];
    while id == [0; 8] {
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok((u64::from_be_bytes(id), open_with(sandbox, id)?))
}

fn open_with(sandbox: &SandboxDir, id: [u8; 8]) -> io::Result<UnixStream> {
    let mut stream = sandbox.connect(STREAM_PORT)?;
    stream.write_all(&id)?;
    Ok(stream)
}

/// Opens a connection for a stream that was saved. None for /dev/null.
fn open_again(sandbox: &SandboxDir, id: u64) -> io::Result<Option<UnixStream>> {
    let open = || open_with(sandbox, id.to_be_bytes());
    (id != 0).then(open).transpose()
}

/// Whether a descriptor is /dev/null. The process then gets the guest's /dev/null, and so a
/// character device as in runc.
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

/// Copies from the host to the guest until either side ends.
fn copy_to_guest(from: &OwnedFd, to: &UnixStream) {
    descriptors::copy_until_closed(from, to);
    // Fails if the guest has closed it first.
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies from the guest to the host until either side ends.
pub(crate) fn copy_from_guest(from: &UnixStream, to: &OwnedFd) {
    copy(from.as_fd(), to.as_fd());
    // A writer in the guest gets EPIPE.
    let _ = from.shutdown(Shutdown::Both);
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut buffer = [0; BUFFER];
    while copy_some(from, to, &mut buffer) {}
}

/// Waits for data and copies one buffer. False at the end of either side.
pub(crate) fn copy_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> bool {
    // Reading a terminal whose other end is closed fails with EIO, which is its end, too.
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

/// Repeats an interrupted call, and polls where another process has set O_NONBLOCK on the
/// descriptor.
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
mod tests;
