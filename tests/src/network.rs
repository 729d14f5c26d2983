//! The network namespace of a test's world. Commands of the test take it for the host's.
//!
//! Links and Unix sockets belong to a network namespace, so everything in this one is the test's.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

pub struct Network {
    namespace: OwnedFd,
    /// Links that the kernel creates in every namespace.
    links: HashSet<String>,
}

impl Network {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            #[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
            // SAFETY: CLONE_NEWNET changes only what this thread opens from now on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let namespace = File::open("/proc/thread-self/ns/net").unwrap().into();
            Self {
                namespace,
                links: links(),
            }
        });
        made.join().unwrap()
    }

    /// Moves the calling thread, or a process about to execute, into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        Ok(move_into_link_name_space(self.namespace.as_fd(), kind)?)
    }

    /// The links and named sockets that the kernel did not create.
    pub fn foreign(&self) -> Vec<String> {
        self.inside(|| {
            let links = links()
                .into_iter()
                .filter(|name| !self.links.contains(name));
            links
                .map(|name| format!("link {name}"))
                .chain(sockets().into_iter().map(|name| format!("socket {name}")))
                .collect()
        })
    }

    /// A path to the namespace, valid for the life of this value.
    pub fn path(&self) -> String {
        let fd = self.namespace.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id())
    }

    /// Runs ip(8) in the namespace; returns what it prints.
    pub fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    /// Runs tc(8) in the namespace; returns what it prints.
    pub fn tc(&self, arguments: &str) -> String {
        self.run("tc", arguments)
    }

    fn run(&self, program: &str, arguments: &str) -> String {
        let mut command = Command::new(program);
        command.args(arguments.split(' '));
        let output = self.inside(|| command.output()).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Calls a function on a thread in the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// The names of the links in the calling thread's namespace.
fn links() -> HashSet<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// The names of the Unix sockets in the calling thread's namespace, once for each end.
pub fn sockets() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    let names = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7));
    names.map(str::to_owned).collect()
}
