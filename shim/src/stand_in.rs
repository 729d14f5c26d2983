//! A process number of the host's for a container, whose processes have none.
//!
//! It is that of a thread of this process that does nothing but be in the container's network
//! namespace, where containerd and engines look for it by the number. The number is the container's
//! alone while the value lives, and whoever kills it ends this process, and with it the machine.

use std::io;
use std::sync::mpsc;
use std::thread;

use rvm_sandbox::network::Namespace;

/// A thread needs no more to wait.
const STACK: usize = 16 * 1024;

/// A number that stands for a container.
#[derive(Debug)]
pub struct StandIn {
    pid: i32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// A new one, in this network namespace.
    pub fn new(namespace: Namespace) -> io::Result<Self> {
        let (end, ended) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let wait = move || {
            let pid = rustix::thread::gettid().as_raw_nonzero().get();
            let _ = tell.send(namespace.enter().map(|()| pid));
            // An error is the end of the other side.
            let _ = ended.recv();
        };
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(wait)?;
        let pid = told.recv().map_err(io::Error::other)??;
        Ok(Self { pid, _end: end })
    }

    /// The number.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvm_sandbox::network::Wanted;

    #[test]
    fn every_container_has_a_number_with_namespaces() {
        let own = StandIn::new(Namespace::own().unwrap()).unwrap();
        let new = Namespace::take(&Wanted::New).unwrap();
        let (one, other) = (
            StandIn::new(new.try_clone().unwrap()).unwrap(),
            StandIn::new(new).unwrap(),
        );
        assert_ne!(one.pid(), other.pid());
        let network = |stand_in: &StandIn| {
            let path = format!("/proc/{}/ns/net", stand_in.pid());
            std::fs::read_link(path).unwrap()
        };
        assert_eq!(network(&one), network(&other));
        assert_ne!(network(&one), network(&own));
        for kind in ["net", "ipc", "uts", "pid", "user"] {
            let path = format!("/proc/{}/ns/{kind}", one.pid());
            std::fs::read_link(path).unwrap();
        }
    }
}
