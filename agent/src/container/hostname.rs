//! The host name of a container that runs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use rustix::io::Errno;

use super::Container;
use crate::process::ProcessError;
use crate::sys::{Doing as _, clone};

impl Container {
    /// Sets the host name, unless it is empty or the container has none of its own.
    pub fn set_hostname(&self, name: &str) -> Result<(), ProcessError> {
        if name.is_empty() {
            return Ok(());
        }
        let own = namespace("self")?;
        let theirs = namespace(&self.init().pid().to_string())?;
        if inode(&own) == inode(&theirs) {
            return Ok(());
        }
        let set = || {
            clone::enter_namespaces(theirs.as_fd(), libc::CLONE_NEWUTS as u64)?;
            rustix::system::sethostname(name.as_bytes())
        };
        // On a thread of its own: this one stays where it is.
        let set = std::thread::scope(|scope| scope.spawn(set).join());
        let set = set.unwrap_or(Err(Errno::IO));
        Ok(set.doing(|| "set the container's host name")?)
    }
}

fn namespace(process: &str) -> Result<File, ProcessError> {
    let path = format!("/proc/{process}/ns/uts");
    Ok(File::open(&path).doing(|| format!("open {path}"))?)
}

fn inode(namespace: &File) -> Option<u64> {
    namespace.metadata().map(|found| found.ino()).ok()
}
