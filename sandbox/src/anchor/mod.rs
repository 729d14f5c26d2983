//! What has a container's pid on the host.
//!
//! Engines and administrators inspect a container through the namespaces of its pid. The anchor is
//! therefore in the container's network namespace and in a mount namespace that shows the
//! container's files, see [`rootfs_view`]. It does no other work. In a monitor it is the main
//! thread, and all other threads stay in the host's namespaces. A shim has several containers and
//! so a process for each, see [`stand_in`].

pub(crate) mod rootfs_view;
pub mod stand_in;
pub(crate) mod synthetic_proc;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};
use tokio::sync::watch;

use crate::host::signals;
use crate::network::Namespace;
use crate::share::StorageError;
use rootfs_view::RootfsView;
use stand_in::StandIn;
#[cfg(any(test, feature = "fuzzing"))]
pub use synthetic_proc::shown;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to a container's anchor.
#[derive(Debug)]
pub struct PidAnchor {
    kind: Kind,
    has_left: watch::Sender<bool>,
}

#[derive(Debug)]
enum Kind {
    Thread { pid: i32, jobs: mpsc::Sender<Job> },
    Process(StandIn),
}

impl PidAnchor {
    /// Makes the calling thread, which must be the process's main thread, an anchor while `work`
    /// runs on a new thread. Both block the signals that are forwarded to the container.
    pub fn with_main_thread<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> io::Result<T> {
        signals::mask()?;
        let (jobs, received) = mpsc::channel();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let anchor = Self::of(Kind::Thread { pid, jobs });
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

    /// Starts a process that is the anchor of this container until the handle is dropped or
    /// [`Self::leave_rootfs`] is called. The program must call [`stand_in::run`] where its name is
    /// [`stand_in::PROGRAM`]. Called within a tokio runtime, on a thread that lives as long as the
    /// container.
    pub fn stand_in(container: &str) -> io::Result<Self> {
        StandIn::spawn(container).map(|process| Self::of(Kind::Process(process)))
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            has_left: watch::channel(false).0,
        }
    }

    /// The container's pid.
    pub fn pid(&self) -> i32 {
        match &self.kind {
            Kind::Thread { pid, .. } => *pid,
            Kind::Process(process) => process.pid(),
        }
    }

    /// Whether it is a process by itself, which no cgroup has for another reason.
    pub(crate) fn is_process(&self) -> bool {
        matches!(self.kind, Kind::Process(_))
    }

    /// Waits for the next signal that somebody sends to the anchor if that is a process; `None`
    /// once it has ended. Cancel safe.
    pub async fn signal(&self) -> Option<i32> {
        match &self.kind {
            Kind::Thread { .. } => std::future::pending().await,
            Kind::Process(process) => process.signal().await,
        }
    }

    /// Moves the anchor into a network namespace.
    pub fn enter(&self, namespace: &Namespace) -> io::Result<()> {
        match &self.kind {
            Kind::Thread { jobs, .. } => {
                let namespace = namespace.try_clone()?;
                run(jobs, move || namespace.enter())?
            }
            Kind::Process(process) => process.enter(namespace.as_fd()),
        }
    }

    /// Moves the anchor into a new mount namespace that shows the container's files; see
    /// [`RootfsView::enter`].
    pub(crate) fn show(
        &self,
        view: RootfsView,
    ) -> io::Result<Result<Option<OwnedFd>, StorageError>> {
        match &self.kind {
            Kind::Thread { jobs, .. } => run(jobs, move || view.enter()),
            Kind::Process(process) => {
                let (proc, namespace) = in_thread(move || view.enter())?;
                if proc.is_ok() {
                    process.enter(namespace.as_fd())?;
                }
                Ok(proc)
            }
        }
    }

    /// Lets go of the container's files, so that the anchor no longer keeps their mounts busy: a
    /// thread moves into the calling thread's mount namespace, a process ends.
    pub fn leave_rootfs(&self) -> io::Result<()> {
        self.has_left.send_replace(true);
        match &self.kind {
            Kind::Thread { jobs, .. } => {
                let mounts = File::open("/proc/thread-self/ns/mnt")?;
                let kind = Some(LinkNameSpaceType::Mount);
                Ok(run(jobs, move || {
                    move_into_link_name_space(mounts.as_fd(), kind)
                })??)
            }
            Kind::Process(process) => process.end(),
        }
    }

    /// Completes when the anchor has left the container's root file system or has ended.
    pub fn left_rootfs(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut has_left = self.has_left.subscribe();
        async move {
            // An error means that the handle is gone.
            let _ = has_left.wait_for(|has_left| *has_left).await;
        }
    }
}

/// Runs `work` on the anchor thread that runs `jobs`, and waits for its result.
fn run<T: Send + 'static>(
    jobs: &mpsc::Sender<Job>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (send, receive) = mpsc::channel();
    let job = move || {
        let _ = send.send(work());
    };
    let gone = |_| io::Error::other("the container's thread has ended");
    jobs.send(Box::new(job)).map_err(gone)?;
    receive.recv().map_err(io::Error::other)
}

/// Runs `work` on a thread of its own; returns its result and the mount namespace that the thread
/// is in then.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<(T, File)> {
    let (done, is_done) = mpsc::channel();
    let (opened, is_opened) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let thread = move || {
            let _ = done.send((work(), gettid()));
            // The namespace lives as long as this thread, until it is opened.
            let _ = is_opened.recv();
        };
        // Not `scope.spawn`, which panics where the host has room for no more threads.
        thread::Builder::new().spawn_scoped(scope, thread)?;
        let (result, thread) = is_done.recv().map_err(io::Error::other)?;
        let path = format!("/proc/self/task/{}/ns/mnt", thread.as_raw_nonzero());
        let namespace = File::open(path)?;
        drop(opened);
        Ok((result, namespace))
    })
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

    impl PidAnchor {
        /// An anchor thread that ends when the handle is dropped.
        pub(crate) fn spawn() -> Self {
            let (jobs, received) = mpsc::channel();
            let (send, receive) = mpsc::channel();
            thread::spawn(move || {
                let _ = send.send(gettid().as_raw_nonzero().get());
                run_jobs(&received);
            });
            let pid = receive.recv().unwrap();
            Self::of(Kind::Thread { pid, jobs })
        }

        /// Runs `work` on an anchor thread.
        pub(crate) fn run<T: Send + 'static>(
            &self,
            work: impl FnOnce() -> T + Send + 'static,
        ) -> T {
            match &self.kind {
                Kind::Thread { jobs, .. } => run(jobs, work).unwrap(),
                Kind::Process(_) => panic!("no thread"),
            }
        }
    }

    fn network(pid: i32) -> std::path::PathBuf {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
    }

    #[test]
    fn every_container_has_a_pid_with_namespaces() {
        let (one, other) = (PidAnchor::spawn(), PidAnchor::spawn());
        let own = PidAnchor::spawn();
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
                (own(), anchor.run(own))
            });
            done.unwrap()
        };
        // The main thread is the test harness's.
        let (worker, anchor) = thread::spawn(test).join().unwrap();
        assert_eq!(worker, stay);
        assert_ne!(anchor, stay);
    }
}
