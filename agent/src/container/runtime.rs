//! What the containers of a guest share.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::events::Events;
use crate::meminfo::Meminfo;
use crate::process::Reaper;
use crate::streams::StreamHub;
use crate::sys::{Doing as _, OsError};
use crate::volumes::HostDirs;

/// The agent's services for containers. A copy is another handle.
#[derive(Clone)]
pub struct Runtime {
    /// The agent's own binary, which every process of a container executes first.
    pub program: Arc<OwnedFd>,
    pub streams: StreamHub,
    pub reaper: Reaper,
    pub events: Events,
    pub host_dirs: HostDirs,
    pub meminfo: Meminfo,
}

impl Runtime {
    pub fn new() -> Result<Self, OsError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let program = rustix::fs::open("/proc/self/exe", flags, Mode::empty())
            .doing(|| "open the agent's binary")?;
        Ok(Self {
            program: Arc::new(program),
            streams: StreamHub::default(),
            reaper: Reaper::default(),
            events: Events::default(),
            host_dirs: HostDirs::default(),
            meminfo: Meminfo::default(),
        })
    }
}
