//! Descriptors beyond the standard streams that a process in the guest is to have: what
//! `--preserve-fds` and LISTEN_FDS name.
//!
//! Only what is a stream of bytes can be carried: a pipe, or a connected stream socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::net::{SendFlags, SocketType, sockopt};
use rvm_protocol::agent::extra_descriptor::Kind;

use crate::guest::stdio::{BUFFER, copy_from_guest, copy_some, is_null};

/// The first descriptor behind the standard streams.
pub const FIRST: RawFd = 3;

/// As many as the agent takes.
const MAX: u32 = 61;

/// A descriptor that cannot be carried into the guest.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Nothing is there.
    #[error("descriptor {number}, which is to be preserved, is not open")]
    Closed {
        /// Which one.
        number: RawFd,
        /// What the kernel says of it.
        #[source]
        source: io::Error,
    },
    /// It is not a stream.
    #[error(
        "descriptor {number} is {what}, which cannot be carried into the virtual machine; pipes, \
         connected stream sockets and /dev/null can"
    )]
    Unfit {
        /// Which one.
        number: RawFd,
        /// What it is.
        what: &'static str,
    },
    /// There is a limit.
    #[error("{0} descriptors are to be preserved; not more than {MAX} can be")]
    TooMany(u32),
}

/// A descriptor that the guest's process will have.
#[derive(Debug)]
pub struct Extra {
    fd: OwnedFd,
    /// `None` for /dev/null.
    kind: Option<Kind>,
}

impl Extra {
    /// As what the process will see it; `None` for /dev/null.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }
}

/// Takes `count` inherited descriptors over, from 3 on. To be called once.
pub fn inherited(count: u32) -> Result<Vec<Extra>, DescriptorError> {
    if count > MAX {
        return Err(DescriptorError::TooMany(count));
    }
    (FIRST..)
        .take(count as usize)
        .map(|number| {
            let fd = take(number).map_err(|source| DescriptorError::Closed { number, source })?;
            match classify(&fd) {
                Ok(kind) => Ok(Extra { fd, kind }),
                Err(what) => Err(DescriptorError::Unfit { number, what }),
            }
        })
        .collect()
}

/// Takes a descriptor over that this program was started with.
#[expect(unsafe_code, reason = "a descriptor that comes by number")]
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number and says whether it is a descriptor.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // What this program itself has opened is closed on exec, so that a number that the caller is
    // wrong about is told apart.
    if number < FIRST || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is open and was inherited, and from now on it is marked as taken.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// As what a descriptor can be carried, or what it is if it cannot.
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
        FileType::RegularFile => Err("a file"),
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

/// Copies from the host until its end, or until the guest takes no more.
pub(crate) fn copy_input(extra: &Extra, to: &UnixStream) {
    copy_while_wanted(&extra.fd, to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies from the guest until its end.
pub(crate) fn copy_output(extra: &Extra, from: &UnixStream) {
    copy_from_guest(from, &extra.fd);
}

/// Copies from the guest to a socket until its end, which is passed on if it is that of one
/// direction only; if the process has closed the socket, so does the caller.
pub(crate) fn copy_socket(extra: &Extra, from: &UnixStream) {
    let mut buffer = [0; BUFFER];
    while copy_some(from.as_fd(), extra.fd.as_fd(), &mut buffer) {}
    let half_closed = rustix::net::send(from, &[], SendFlags::NOSIGNAL).is_ok();
    if half_closed {
        let _ = rustix::net::shutdown(&extra.fd, rustix::net::Shutdown::Write);
    } else {
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// Copies until either side ends, also if that which is written to does while there is nothing to be
/// read.
pub(crate) fn copy_while_wanted(from: &OwnedFd, to: &UnixStream) {
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
        if gone || !copy_some(from.as_fd(), to.as_fd(), &mut buffer) {
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

    fn extra(fd: impl Into<OwnedFd>) -> Extra {
        let fd = fd.into();
        let kind = classify(&fd).unwrap();
        Extra { fd, kind }
    }

    #[test]
    fn streams_of_bytes_can_be_carried() {
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
    }

    #[test]
    fn what_is_no_stream_is_named() {
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (fd, what) in [
            (tempfile::tempfile().unwrap().into(), "a file"),
            (std::fs::File::open("/").unwrap().into(), "a directory"),
            (std::fs::File::open("/dev/zero").unwrap().into(), "a device"),
            (OwnedFd::from(datagram), "a socket without a stream"),
            (listener.into(), "a listening socket"),
        ] {
            assert_eq!(classify(&fd), Err(what));
        }
    }

    #[test]
    fn a_descriptor_of_this_programs_own_is_not_an_inherited_one() {
        use std::os::fd::AsRawFd as _;
        let own = tempfile::tempfile().unwrap();
        assert!(take(own.as_raw_fd()).is_err());
        assert!(take(1).is_err());
    }

    #[test]
    fn a_writer_hears_that_the_guest_has_closed_its_end() {
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
    fn a_half_closed_socket_still_hears() {
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
