//! Permission events of fanotify(7): a process that opens a directory, or reads a file, waits until
//! this one allows it, and sees what this one has put there meanwhile.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};

use crate::readiness::Readable;

/// The processes that want to open a directory or to read a file. Dropped, it allows all of them.
#[derive(Debug)]
pub struct AccessRequests {
    group: Fanotify,
    readable: Readable,
    /// Events that were read together with one that was returned.
    read: Mutex<VecDeque<FanotifyEvent>>,
}

/// A process that waits for access. Dropped without an answer, it is denied.
#[derive(Debug)]
pub struct AccessRequest<'a> {
    group: &'a Fanotify,
    event: FanotifyEvent,
    answer: Response,
}

impl AccessRequests {
    /// Watches nothing yet. The queue has no bound of its own: each event in it is a process that
    /// waits.
    ///
    /// Fails without CAP_SYS_ADMIN, and on a kernel without CONFIG_FANOTIFY_ACCESS_PERMISSIONS.
    /// Called within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT
            | InitFlags::FAN_UNLIMITED_QUEUE
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
        let readable = Readable::new(group.as_fd())?;
        Ok(Self {
            group,
            readable,
            read: Mutex::default(),
        })
    }

    /// Watches who opens a directory, wherever it is mounted, but not the files and directories in
    /// it. This process must not wait for one that opens the directory: neither would go on.
    pub fn watch_opens(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_ONLYDIR;
        let events = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
        Ok(self.group.mark(flags, events, dir, Some(c"."))?)
    }

    /// Watches who reads a file, wherever it is mounted, for as long as the file exists. This
    /// process must not read it.
    pub fn watch_reads(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let (flags, events) = (MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_ACCESS_PERM);
        Ok(self.group.mark(flags, events, file, None::<&CStr>)?)
    }

    /// Waits for the next process. Cancel safe.
    pub async fn next(&self) -> io::Result<AccessRequest<'_>> {
        loop {
            let event = self.lock().pop_front();
            match event {
                Some(event) if is_request(&event) => {
                    return Ok(AccessRequest {
                        group: &self.group,
                        event,
                        answer: Response::FAN_DENY,
                    });
                }
                Some(_) => {}
                None => {
                    let read = |_: BorrowedFd<'_>| Ok(self.group.read_events()?);
                    let events = self.readable.read(read).await?;
                    self.lock().extend(events);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<FanotifyEvent>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_request(event: &FanotifyEvent) -> bool {
    let kinds = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ACCESS_PERM;
    event.mask().intersects(kinds) && event.fd().is_some()
}

impl AccessRequest<'_> {
    /// The directory or file, opened for reading.
    pub fn file(&self) -> io::Result<BorrowedFd<'_>> {
        self.event
            .fd()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Lets the process go on.
    pub fn allow(mut self) {
        self.answer = Response::FAN_ALLOW;
    }
}

impl Drop for AccessRequest<'_> {
    fn drop(&mut self) {
        if let Some(fd) = self.event.fd() {
            // Fails if the process no longer waits.
            let _ = self
                .group
                .write_response(FanotifyResponse::new(fd, self.answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Read as _;

    #[tokio::test]
    async fn who_opens_the_directory_waits_for_what_is_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = File::open(dir.path()).unwrap();
        let requests = AccessRequests::new().unwrap();
        requests.watch_opens(own.as_fd()).unwrap();
        let path = dir.path().to_owned();
        let look = move || fs::read_dir(path).map(Iterator::count);
        let looks = tokio::task::spawn_blocking(look.clone());
        let request = requests.next().await.unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        request.allow();
        assert_eq!(looks.await.unwrap().unwrap(), 1);

        let looks = tokio::task::spawn_blocking(look.clone());
        drop(requests.next().await.unwrap());
        let error = looks.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);

        let looks = tokio::task::spawn_blocking(look.clone());
        requests.next().await.unwrap().allow();
        assert_eq!(looks.await.unwrap().unwrap(), 1);
        drop(requests);
        assert_eq!(look().unwrap(), 1);
    }

    #[tokio::test]
    async fn who_reads_a_file_reads_what_it_says_at_that_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let requests = AccessRequests::new().unwrap();
        requests
            .watch_reads(File::open(&path).unwrap().as_fd())
            .unwrap();
        let mut reader = File::open(&path).unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 16];
            let length = reader.read(&mut buffer).unwrap();
            buffer[..length].to_vec()
        });
        let request = requests.next().await.unwrap();
        let inode = |fd| rustix::fs::fstat(fd).unwrap().st_ino;
        let own = File::open(&path).unwrap();
        assert_eq!(inode(request.file().unwrap()), inode(own.as_fd()));
        fs::write(&path, "text").unwrap();
        request.allow();
        assert_eq!(read.await.unwrap(), b"text");
    }
}
