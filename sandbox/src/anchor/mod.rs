//! The thread whose id is a container's pid on the host.
//!
//! Engines and administrators inspect a container through the namespaces of its pid. The anchor
//! thread is therefore in the container's network namespace and in a mount namespace that shows the
//! container's files, see [`rootfs_view`]. It does no other work; all other threads stay in the
//! host's namespaces. In a monitor it is the main thread. A shim has several containers and so an
//! anchor thread for each.

pub(crate) mod rootfs_view;
pub(crate) mod synthetic_proc;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::watch;

use crate::host::signals;
use crate::network::Namespace;

/// Enough to wait and to mount, in bytes.
const STACK: usize = 128 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to a container's anchor thread.
#[derive(Debug)]
pub struct PidAnchor {
    pid: i32,
    jobs: mpsc::Sender<Job>,
    has_left: watch::Sender<bool>,
}

impl PidAnchor {
    /// Makes the calling thread, which must be the process's main thread, an anchor while `work`
    /// runs on a new thread. Both block the signals that are forwarded to the container.
    pub fn with_main_thread<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> io::Result<T> {
        signals::mask()?;
        let (jobs, received) = mpsc::channel();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let anchor = Self::of(pid, jobs);
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("monitor".to_owned())
                .spawn_scoped(scope, move || work(&anchor))?;
            run_jobs(&received);
            match worker.join() {
                Ok(done) => Ok(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts an anchor thread, which ends when the handle is dropped. A signal that kills the
    /// thread kills the whole process.
    pub fn spawn() -> io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let (send, receive) = mpsc::channel();
        let wait = move || {
            let _ = send.send(rustix::thread::gettid().as_raw_nonzero().get());
            run_jobs(&received);
        };
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(wait)?;
        let pid = receive.recv().map_err(io::Error::other)?;
        Ok(Self::of(pid, jobs))
    }

    fn of(pid: i32, jobs: mpsc::Sender<Job>) -> Self {
        Self {
            pid,
            jobs,
            has_left: watch::channel(false).0,
        }
    }

    /// The thread's id, which is the container's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Moves the anchor thread into a network namespace.
    pub fn enter(&self, namespace: &Namespace) -> io::Result<()> {
        let namespace = namespace.try_clone()?;
        self.run(move || namespace.enter())?
    }

    /// Moves the anchor thread into the calling thread's mount namespace, so that it no longer
    /// keeps the container's mounts busy.
    pub fn leave_rootfs(&self) -> io::Result<()> {
        self.has_left.send_replace(true);
        let mounts = File::open("/proc/thread-self/ns/mnt")?;
        let kind = Some(LinkNameSpaceType::Mount);
        Ok(self.run(move || move_into_link_name_space(mounts.as_fd(), kind))??)
    }

    /// Completes when the anchor thread has left the container's root file system or has ended.
    pub fn left_rootfs(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut has_left = self.has_left.subscribe();
        async move {
            // An error means that the handle is gone.
            let _ = has_left.wait_for(|has_left| *has_left).await;
        }
    }

    /// Runs `work` on the anchor thread and waits for its result.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (send, receive) = mpsc::channel();
        let job = move || {
            let _ = send.send(work());
        };
        self.jobs
            .send(Box::new(job))
            .map_err(|_| io::Error::other("the container's thread has ended"))?;
        receive.recv().map_err(io::Error::other)
    }
}

/// Runs jobs until the handle is dropped.
fn run_jobs(jobs: &mpsc::Receiver<Job>) {
    for job in jobs {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::NamespaceSource;

    fn network(pid: i32) -> std::path::PathBuf {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
    }

    #[test]
    fn every_container_has_a_pid_with_namespaces() {
        let (one, other) = (PidAnchor::spawn().unwrap(), PidAnchor::spawn().unwrap());
        let own = PidAnchor::spawn().unwrap();
        let new = Namespace::create_or_open(&NamespaceSource::New).unwrap();
        one.enter(&new).unwrap();
        other.enter(&new).unwrap();
        assert_ne!(one.pid(), other.pid());
        assert_eq!(network(one.pid()), network(other.pid()));
        assert_ne!(network(one.pid()), network(own.pid()));
        for kind in ["net", "ipc", "uts", "pid", "user"] {
            let path = format!("/proc/{}/ns/{kind}", one.pid());
            std::fs::read_link(path).unwrap();
        }
    }

    #[test]
    fn the_worker_stays_outside_the_anchors_namespaces() {
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let stay = own();
        let test = move || {
            let done = PidAnchor::with_main_thread(|anchor| {
                let new = Namespace::create_or_open(&NamespaceSource::New).unwrap();
                anchor.enter(&new).unwrap();
                (own(), anchor.run(own).unwrap())
            });
            done.unwrap()
        };
        // The main thread is the test harness's.
        let (worker, anchor) = thread::spawn(test).join().unwrap();
        assert_eq!(worker, stay);
        assert_ne!(anchor, stay);
    }
}
