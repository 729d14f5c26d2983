//! Being asked before somebody opens a directory: fanotify(7), which rustix lacks. Used by
//! [`crate::anchor::synthetic_proc`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::host::readable::Readable;

/// `struct fanotify_event_metadata`: where its fields are that are of interest, and its size.
const MASK: usize = 8;
const FD: usize = 16;
const SIZE: usize = 24;

/// A directory whose visitors wait. Dropped, it lets them in.
pub struct Gate {
    queue: OwnedFd,
    knocks: Readable,
}

/// Somebody who wants to open the directory. Turned away if nobody decides.
pub struct Visitor<'a> {
    gate: &'a Gate,
    /// The directory, as the visitor is to have it: what names the visitor.
    opened: OwnedFd,
    is_welcome: bool,
}

impl Gate {
    /// Before a directory, wherever it is mounted. Files and directories in it are not meant. Nobody may
    /// open it whom this process waits for: that would never end.
    ///
    /// Fails without CAP_SYS_ADMIN, and on a kernel without CONFIG_FANOTIFY_ACCESS_PERMISSIONS. Called
    /// within a tokio runtime.
    pub fn before(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let queue = init()?;
        mark(queue.as_fd(), dir)?;
        let knocks = Readable::new(queue.as_fd())?;
        Ok(Self { queue, knocks })
    }

    /// Returns when somebody wants to open the directory. May be given up at any time.
    pub async fn visitor(&self) -> io::Result<Visitor<'_>> {
        loop {
            // No more than one event fits in.
            let mut event = [0; SIZE];
            let read = |fd: BorrowedFd<'_>| Ok(rustix::io::read(fd, &mut event)?);
            if self.knocks.read(read).await? < SIZE {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(opened) = opened(&event) {
                return Ok(Visitor {
                    gate: self,
                    opened,
                    is_welcome: false,
                });
            }
        }
    }
}

impl Visitor<'_> {
    /// Lets the directory be opened.
    pub fn let_in(mut self) {
        self.is_welcome = true;
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        let answer = match self.is_welcome {
            true => libc::FAN_ALLOW,
            false => libc::FAN_DENY,
        };
        let fd = self.opened.as_raw_fd().to_ne_bytes();
        let response = [fd, answer.to_ne_bytes()].concat();
        // Who no longer waits needs no answer.
        let _ = rustix::io::write(&self.gate.queue, &response);
    }
}

#[expect(unsafe_code, reason = "a system call that rustix lacks")]
fn init() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let opened = (libc::O_RDONLY | libc::O_CLOEXEC) as libc::c_uint;
    // SAFETY: the call touches no memory.
    let queue = unsafe { libc::fanotify_init(flags, opened) };
    if queue < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(queue) })
}

#[expect(unsafe_code, reason = "a system call that rustix lacks")]
fn mark(queue: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the path is a C string that lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fanotify_mark,
            queue.as_raw_fd(),
            libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR,
            libc::FAN_OPEN_PERM | libc::FAN_ONDIR,
            dir.as_raw_fd(),
            c".".as_ptr(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptor in an event that asks; none in one that says that others were lost.
#[expect(unsafe_code, reason = "a descriptor in an event")]
fn opened(event: &[u8; SIZE]) -> Option<OwnedFd> {
    let mask = event.get(MASK..MASK + 8)?.try_into().ok()?;
    let fd = event.get(FD..FD + 4)?.try_into().ok()?;
    let fd = i32::from_ne_bytes(fd);
    let asks = u64::from_ne_bytes(mask) & libc::FAN_OPEN_PERM != 0;
    // SAFETY: the kernel has opened it for the reader of the event, who is nobody but this.
    (asks && fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[tokio::test]
    async fn who_opens_the_directory_waits_for_what_is_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = File::open(dir.path()).unwrap();
        let gate = Gate::before(own.as_fd()).unwrap();
        let path = dir.path().to_owned();
        let look = move || fs::read_dir(path).map(Iterator::count);
        let looks = tokio::task::spawn_blocking(look.clone());
        let visitor = gate.visitor().await.unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        visitor.let_in();
        assert_eq!(looks.await.unwrap().unwrap(), 1);

        let looks = tokio::task::spawn_blocking(look.clone());
        drop(gate.visitor().await.unwrap());
        let error = looks.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);

        let looks = tokio::task::spawn_blocking(look.clone());
        gate.visitor().await.unwrap().let_in();
        assert_eq!(looks.await.unwrap().unwrap(), 1);
        drop(gate);
        assert_eq!(look().unwrap(), 1);
    }
}
