//! Permission events of fanotify(7): a process that opens a directory waits until this one allows
//! it. Used by [`crate::anchor::synthetic_proc`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};
use rvm_sys::readiness::Readable;

/// The processes that want to open a directory. Dropped, it allows all of them.
pub struct OpenRequests {
    group: Fanotify,
    readable: Readable,
    /// Events that were read together with one that was returned.
    read: Mutex<VecDeque<FanotifyEvent>>,
}

/// A process that waits to open the directory. Dropped without an answer, it is denied.
pub struct OpenRequest<'a> {
    group: &'a Fanotify,
    event: FanotifyEvent,
    answer: Response,
}

impl OpenRequests {
    /// Watches a directory, wherever it is mounted, but not the files and directories in it. This
    /// process must not wait for one that opens the directory: neither would go on.
    ///
    /// Fails without CAP_SYS_ADMIN, and on a kernel without CONFIG_FANOTIFY_ACCESS_PERMISSIONS.
    /// Called within a tokio runtime.
    pub fn watch(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_ONLYDIR;
        let events = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR;
        group.mark(flags, events, dir, Some(c"."))?;
        let readable = Readable::new(group.as_fd())?;
        Ok(Self {
            group,
            readable,
            read: Mutex::default(),
        })
    }

    /// Waits for the next process that wants to open the directory. Cancel safe.
    pub async fn next(&self) -> io::Result<OpenRequest<'_>> {
        loop {
            let event = self.lock().pop_front();
            match event {
                // Another event says that the queue has overflowed.
                Some(event) if is_request(&event) => {
                    return Ok(OpenRequest {
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
    event.mask().contains(MaskFlags::FAN_OPEN_PERM) && event.fd().is_some()
}

impl OpenRequest<'_> {
    /// Lets the process open the directory.
    pub fn allow(mut self) {
        self.answer = Response::FAN_ALLOW;
    }
}

impl Drop for OpenRequest<'_> {
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

    #[tokio::test]
    async fn who_opens_the_directory_waits_for_what_is_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let own = File::open(dir.path()).unwrap();
        let requests = OpenRequests::watch(own.as_fd()).unwrap();
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
}
