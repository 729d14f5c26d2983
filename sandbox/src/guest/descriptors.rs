//! Descriptors beyond the standard streams that a process in the guest inherits, from
//! `--preserve-fds` and LISTEN_FDS.
//!
//! Byte streams are relayed: pipes and connected stream sockets. The guest opens a file itself, see
//! [`PassedFile`](super::passed_file::PassedFile).

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{SendFlags, SocketType, sockopt};
use rvm_protocol::agent::extra_descriptor::Kind;

use crate::guest::input_gate::GATE;
use crate::guest::stdio::{BUFFER, copy_from_guest, copy_some, is_null};

/// The first descriptor after the standard streams.
pub const FIRST: RawFd = 3;

/// The agent's limit.
const MAX: u32 = 61;

/// A descriptor cannot be relayed to the guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum DescriptorError {
    #[error("descriptor {number}, which is to be preserved, is not open")]
    Closed {
        number: RawFd,
        #[source]
        source: io::Error,
    },
    #[error(
        "descriptor {number} is {what}, which cannot be carried into the virtual machine; pipes, \
         connected stream sockets, files and /dev/null can"
    )]
    Unsupported { number: RawFd, what: &'static str },
    #[error("{0} descriptors are to be preserved; not more than {MAX} can be")]
    TooMany(u32),
}

/// A descriptor to relay to the guest's process.
#[derive(Debug)]
pub struct ExtraFd {
    fd: OwnedFd,
    /// `None` for /dev/null.
    kind: Option<Kind>,
}

impl ExtraFd {
    /// The kind of descriptor that the process gets; `None` for /dev/null.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsFd for ExtraFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The numbers of `count` inherited descriptors; not more than can be relayed.
pub fn numbers(count: u32) -> impl Iterator<Item = RawFd> {
    (FIRST..).take(count.min(MAX) as usize)
}

/// Takes ownership of `count` inherited descriptors, from 3 on. Call it once.
pub fn inherited(count: u32) -> Result<Vec<ExtraFd>, DescriptorError> {
    if count > MAX {
        return Err(DescriptorError::TooMany(count));
    }
    numbers(count)
        .map(|number| {
            let fd = take(number).map_err(|source| DescriptorError::Closed { number, source })?;
            match classify(&fd) {
                Ok(kind) => Ok(ExtraFd { fd, kind }),
                Err(what) => Err(DescriptorError::Unsupported { number, what }),
            }
        })
        .collect()
}

/// Takes ownership of an inherited descriptor. Fails if it is not open or not inherited.
#[expect(unsafe_code, reason = "a descriptor that comes by number")]
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number and says whether it is a descriptor.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // This program opens its own descriptors with FD_CLOEXEC, which tells them from inherited ones.
    if number < FIRST || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the descriptor is open and inherited; FD_CLOEXEC marks it as taken from here on.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// The kind that a descriptor is relayed as; an error describes a descriptor that cannot be
/// relayed.
fn classify(fd: &OwnedFd) -> Result<Option<Kind>, &'static str> {
    if is_null(fd) {
        return Ok(None);
    }
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return Err("of an unknown kind");
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => pipe(fd).map(Some),
        FileType::Socket => socket(fd).map(Some),
        FileType::RegularFile => file(fd, stat.st_nlink).map(Some),
        FileType::Directory => Err("a directory"),
        FileType::CharacterDevice | FileType::BlockDevice => Err("a device"),
        FileType::Symlink | FileType::Unknown => Err("of an unknown kind"),
    }
}

fn pipe(fd: &OwnedFd) -> Result<Kind, &'static str> {
    let flags = rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::RDWR);
    match flags & OFlags::ACCMODE {
        OFlags::RDONLY => Ok(Kind::INPUT),
        OFlags::WRONLY => Ok(Kind::OUTPUT),
        _ => Err("a pipe open for reading and writing"),
    }
}

/// A file without a name cannot be mounted.
fn file(fd: &OwnedFd, names: u64) -> Result<Kind, &'static str> {
    if names == 0 {
        return Err("a file without a name, as one that was removed or is in memory alone");
    }
    let flags = rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::PATH);
    match flags.contains(OFlags::PATH) {
        true => Err("a file that is open for its path alone"),
        false => Ok(Kind::FILE),
    }
}

fn socket(fd: &OwnedFd) -> Result<Kind, &'static str> {
    if sockopt::socket_type(fd) != Ok(SocketType::STREAM) {
        return Err("a socket without a stream");
    }
    if sockopt::socket_acceptconn(fd) != Ok(false) {
        return Err("a listening socket");
    }
    match rustix::net::getpeername(fd) {
        Err(Errno::NOTCONN) => Err("a socket without a connection"),
        _ => Ok(Kind::SOCKET),
    }
}

/// Copies from the host to the guest until either side ends.
pub(crate) fn copy_input(extra: &ExtraFd, to: &UnixStream) {
    copy_until_closed(&extra.fd, to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies from the guest to the host until either side ends.
pub(crate) fn copy_output(extra: &ExtraFd, from: &UnixStream) {
    copy_from_guest(from, &extra.fd);
}

/// Copies from the guest to a socket of the host until the guest's end. A half-close is passed on;
/// if the process has closed the socket, both directions are shut down.
pub(crate) fn copy_socket(extra: &ExtraFd, from: &UnixStream) {
    let mut buffer = [0; BUFFER];
    while copy_some(from.as_fd(), extra.fd.as_fd(), &mut buffer) {}
    let half_closed = rustix::net::send(from, &[], SendFlags::NOSIGNAL).is_ok();
    if half_closed {
        let _ = rustix::net::shutdown(&extra.fd, rustix::net::Shutdown::Write);
    } else {
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// Copies until either side ends. Notices the end of `to` while there is nothing to read, too.
pub(crate) fn copy_until_closed(from: &OwnedFd, to: &UnixStream) {
    let mut buffer = [0; BUFFER];
    loop {
        let mut fds = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(to, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let gone = !fds[1].revents().is_empty();
        if gone {
            return;
        }
        let _inside = GATE.enter();
        if !copy_some(from.as_fd(), to.as_fd(), &mut buffer) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixDatagram;

    fn extra(fd: impl Into<OwnedFd>) -> ExtraFd {
        let fd = fd.into();
        let kind = classify(&fd).unwrap();
        ExtraFd { fd, kind }
    }

    #[test]
    fn byte_streams_and_files_can_be_carried() {
        let (read, write) = io::pipe().unwrap();
        assert_eq!(classify(&read.into()), Ok(Some(Kind::INPUT)));
        assert_eq!(classify(&write.into()), Ok(Some(Kind::OUTPUT)));
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert_eq!(classify(&socket.into()), Ok(Some(Kind::SOCKET)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(classify(&socket.into()), Ok(Some(Kind::SOCKET)));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(classify(&null.into()), Ok(None));
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = named.reopen().unwrap();
        assert_eq!(classify(&file.into()), Ok(Some(Kind::FILE)));
    }

    #[test]
    fn other_descriptors_are_named() {
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path_alone = rustix::fs::open(file.path(), flags, rustix::fs::Mode::empty()).unwrap();
        for (fd, what) in [
            (path_alone, "a file that is open for its path alone"),
            (
                tempfile::tempfile().unwrap().into(),
                "a file without a name, as one that was removed or is in memory alone",
            ),
            (std::fs::File::open("/").unwrap().into(), "a directory"),
            (std::fs::File::open("/dev/zero").unwrap().into(), "a device"),
            (OwnedFd::from(datagram), "a socket without a stream"),
            (listener.into(), "a listening socket"),
        ] {
            assert_eq!(classify(&fd), Err(what));
        }
    }

    #[test]
    fn a_descriptor_of_this_program_is_not_an_inherited_one() {
        use std::os::fd::AsRawFd as _;
        let own = tempfile::tempfile().unwrap();
        assert!(take(own.as_raw_fd()).is_err());
        assert!(take(1).is_err());
    }

    #[test]
    fn a_writer_gets_epipe_when_the_guest_has_closed_its_end() {
        let (read, mut write) = io::pipe().unwrap();
        let (ours, guest) = UnixStream::pair().unwrap();
        let extra = extra(read);
        let thread = std::thread::spawn(move || copy_input(&extra, &ours));
        drop(guest);
        thread.join().unwrap();
        assert_eq!(
            write.write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_half_closed_socket_still_receives() {
        let (host, mut peer) = UnixStream::pair().unwrap();
        let (ours, guest) = UnixStream::pair().unwrap();
        let extra = extra(host);
        (&guest).write_all(b"hello").unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        copy_socket(&extra, &ours);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        peer.write_all(b"still there").unwrap();
        drop(peer);
        copy_input(&extra, &ours);
        let mut text = String::new();
        (&guest).read_to_string(&mut text).unwrap();
        assert_eq!(text, "still there");
    }
}
