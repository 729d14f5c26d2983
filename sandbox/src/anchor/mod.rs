//! The thread whose number is a container's pid on the host.
//!
//! Engines and their users look at a container through the namespaces of its pid. So this thread is in
//! the container's network namespace and in a mount namespace that shows the container's files, see
//! [`crate::anchor::rootfs_view`], and does nothing but be there; all work is done by others, who are where the host
//! is. It is the first thread of a monitor, or any of a shim's, which has several containers.

pub mod rootfs_view;
pub mod synthetic_proc;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::watch;

use crate::host::signals;
use crate::network::Namespace;

/// A thread needs no more to wait, and to mount.
const STACK: usize = 128 * 1024;

type Order = Box<dyn FnOnce() + Send>;

/// A thread that stands for a container.
#[derive(Debug)]
pub struct StandIn {
    pid: i32,
    orders: mpsc::Sender<Order>,
    has_left: watch::Sender<bool>,
}

impl StandIn {
    /// Does `work` on a new thread, while this one, which must be the process's first, stands in. Both
    /// block the signals that the container is told of.
    pub fn with_first_thread<T: Send>(work: impl FnOnce(&Self) -> T + Send) -> io::Result<T> {
        signals::mask()?;
        let (orders, received) = mpsc::channel();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let stand_in = Self::of(pid, orders);
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("monitor".to_owned())
                .spawn_scoped(scope, move || work(&stand_in))?;
            obey(&received);
            match worker.join() {
                Ok(done) => Ok(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A new thread. Its number is the container's alone while the value lives, and whoever kills it
    /// ends this process.
    pub fn spawn() -> io::Result<Self> {
        let (orders, received) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let wait = move || {
            let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
            obey(&received);
        };
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(wait)?;
        let pid = told.recv().map_err(io::Error::other)?;
        Ok(Self::of(pid, orders))
    }

    fn of(pid: i32, orders: mpsc::Sender<Order>) -> Self {
        Self {
            pid,
            orders,
            has_left: watch::channel(false).0,
        }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Moves it into a network namespace.
    pub fn enter(&self, namespace: &Namespace) -> io::Result<()> {
        let namespace = namespace.try_clone()?;
        self.have(move || namespace.enter())?
    }

    /// Moves it back to the calling thread's files, so that it keeps none of the container's from being
    /// unmounted.
    pub fn leave_view(&self) -> io::Result<()> {
        self.has_left.send_replace(true);
        let mounts = File::open("/proc/thread-self/ns/mnt")?;
        let kind = Some(LinkNameSpaceType::Mount);
        Ok(self.have(move || move_into_link_name_space(mounts.as_fd(), kind))??)
    }

    /// What is done when it has left the container's files, or ended.
    pub fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut has_left = self.has_left.subscribe();
        async move {
            // An error is its end.
            let _ = has_left.wait_for(|has_left| *has_left).await;
        }
    }

    /// Has it do something, and waits until it is done.
    pub fn have<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (tell, told) = mpsc::channel();
        let order = move || {
            let _ = tell.send(work());
        };
        self.orders
            .send(Box::new(order))
            .map_err(|_| io::Error::other("the container's thread has ended"))?;
        told.recv().map_err(io::Error::other)
    }
}

/// Does what is asked until nobody is left who could ask.
fn obey(orders: &mpsc::Receiver<Order>) {
    for order in orders {
        order();
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
    fn every_container_has_a_number_with_namespaces() {
        let (one, other) = (StandIn::spawn().unwrap(), StandIn::spawn().unwrap());
        let own = StandIn::spawn().unwrap();
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
    fn the_worker_is_not_where_the_stand_in_is() {
        let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let stay = own();
        let test = move || {
            let done = StandIn::with_first_thread(|stand_in| {
                let new = Namespace::create_or_open(&NamespaceSource::New).unwrap();
                stand_in.enter(&new).unwrap();
                (own(), stand_in.have(own).unwrap())
            });
            done.unwrap()
        };
        // The first thread is the tests' own.
        let (worker, stand_in) = thread::spawn(test).join().unwrap();
        assert_eq!(worker, stay);
        assert_ne!(stand_in, stay);
    }
}
