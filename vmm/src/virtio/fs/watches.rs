//! Changes that others make to the files that programs of the guest watch with inotify(7).
//!
//! The guest's kernel (a patch in guest-kernel/patches) asks with WATCH for what has its first
//! mark, and keeps one EVENTS request waiting, which is answered when there are events. The host's
//! kernel tells of the changes by fanotify.
//!
//! Changes that this process made are the guest's, and its kernel has told of them, but only where
//! the changed mount is watched: a directory that is mounted twice, for two containers say, is two
//! inodes of the guest. Requests are executed one after the other, so what this process is reported
//! to have changed after one was that request's. Those that other threads execute (`slow.rs`) are
//! the exception: what they change is told to nobody but by the guest's kernel.
//!
//! A guest that asks for no events leaves them in the host's queue, which has a limit and joins
//! equal ones. When it is full, the guest is told that events were lost. There are as many answers
//! as the guest takes, and one at a time.

mod events;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::events::Event;
use super::deferred::{Reply, Ticket};
use super::fanotify::{Group, Identity, Report};
use super::files::Files;
use super::lend;
use super::message::errno;
use crate::virtio::device::{HostFds, Readiness};

/// The most files and directories that are watched at once. Each takes 300 bytes here, and holds an
/// inode in the host's memory.
pub const MAX_WATCHES: usize = 32_768;

/// The most bytes of events in one answer: the size of the guest's buffer.
const ANSWER_BYTES: usize = 3072;

/// The bytes of reports that are read at once.
const READ_BYTES: usize = 8192;

/// The most events that wait for the guest here: more than one read makes.
const MAX_EVENTS: usize = 4096;

/// The first field of a WATCH request's body.
pub mod what {
    pub const END: u32 = 0;
    pub const BEGIN: u32 = 1;
    pub const STOP: u32 = 2;
}

/// A watched inode of the guest.
#[derive(Clone)]
struct Node {
    identity: Identity,
    /// The host's id of the mount that it is in.
    mount: u64,
}

/// Who made a change.
#[derive(Clone, Copy)]
enum By {
    Others,
    /// The guest, by this mount.
    Guest(u64),
}

/// See [`Watches::saved`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedWatches {
    nodes: Vec<u64>,
    last_cookie: u32,
    is_stopped: bool,
}

impl SavedWatches {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}

pub struct Watches {
    fs: Arc<Files>,
    group: Option<Group>,
    /// The device waits for the group's reports.
    is_attached: bool,
    /// The watched inodes of the guest.
    nodes: BTreeMap<u64, Node>,
    /// The same by what they are on the host.
    objects: BTreeMap<Identity, Vec<u64>>,
    /// The inode that was last asked for its mount, and the mount.
    last_mount: Option<(u64, u64)>,
    /// Events that the guest has not taken yet.
    events: VecDeque<Event>,
    /// The host's kernel lost reports, and the inodes after this one have not been told.
    lost_after: Option<Bound<u64>>,
    last_cookie: u32,
    waiting: Option<Ticket>,
    /// The guest unmounts the file system.
    is_stopped: bool,
    has_warned: bool,
}

impl Watches {
    pub fn new(fs: Arc<Files>) -> Self {
        Self {
            fs,
            group: None,
            is_attached: false,
            nodes: BTreeMap::new(),
            objects: BTreeMap::new(),
            last_mount: None,
            events: VecDeque::new(),
            lost_after: None,
            last_cookie: 0,
            waiting: None,
            is_stopped: false,
            has_warned: false,
        }
    }

    /// Answers a WATCH request. ENOSYS says that there are no events at all, ENOSPC that there are
    /// too many watches.
    pub fn watch(&mut self, node: u64, wanted: u32) -> Reply {
        let done = match wanted {
            what::BEGIN => self.begin(node),
            what::END => self.end(node),
            what::STOP => {
                self.clear();
                self.is_stopped = true;
                Ok(())
            }
            _ => Err(Errno::INVAL),
        };
        done.map(|()| Vec::new())
    }

    fn begin(&mut self, node: u64) -> Result<(), Errno> {
        if self.nodes.contains_key(&node) {
            return Ok(());
        }
        if self.nodes.len() >= MAX_WATCHES {
            self.warn_once("the guest watches too many files to see changes by others in more");
            return Err(Errno::NOSPC);
        }
        let watched = self.mark(node).map_err(|error| self.refusal(&error))?;
        let identity = watched.identity.clone();
        self.objects.entry(identity).or_default().push(node);
        self.nodes.insert(node, watched);
        Ok(())
    }

    fn mark(&mut self, node: u64) -> io::Result<Node> {
        let group = match self.group.take() {
            Some(group) => group,
            None => Group::new().map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => Errno::NOSYS.into(),
                Some(libc::EMFILE) => Errno::NOSPC.into(),
                _ => error,
            })?,
        };
        let group = self.group.insert(group);
        lend::with_contents(&*self.fs, node, |file| {
            let node = Node {
                identity: Identity::of(file)?,
                mount: mount_of(file)?,
            };
            group.add(file)?;
            Ok(node)
        })
    }

    /// What the guest is told of a failure.
    fn refusal(&mut self, error: &io::Error) -> Errno {
        let reason = match error.raw_os_error() {
            Some(libc::ENOSYS) => "Linux 5.17 tells of them",
            Some(libc::ENOSPC) => "a limit in /proc/sys/fs/fanotify is reached",
            Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EXDEV) => "a file system has no fanotify",
            _ => "",
        };
        if !reason.is_empty() {
            self.warn_once(&format!(
                "inotify does not show all changes by others: {reason}"
            ));
        }
        self.leave_empty_group();
        errno(error)
    }

    /// A group is one of few that a user may have. Closing it removes its marks, and ends the
    /// device's wait for it.
    fn leave_empty_group(&mut self) {
        if self.nodes.is_empty() {
            self.group = None;
            self.is_attached = false;
        }
    }

    fn end(&mut self, node: u64) -> Result<(), Errno> {
        let identity = &self.nodes.get(&node).ok_or(Errno::NOENT)?.identity;
        let is_last = self
            .objects
            .get(identity)
            .is_none_or(|nodes| nodes.len() < 2);
        if let Some(group) = self.group.as_ref().filter(|_| is_last) {
            // A mark that cannot be removed keeps its place among those that may exist.
            lend::with_contents(&*self.fs, node, |file| group.remove(file))
                .map_err(|error| errno(&error))?;
        }
        if let Some(Node { identity, .. }) = self.nodes.remove(&node)
            && let Some(nodes) = self.objects.get_mut(&identity)
        {
            nodes.retain(|&other| other != node);
            if nodes.is_empty() {
                self.objects.remove(&identity);
            }
        }
        self.leave_empty_group();
        Ok(())
    }

    /// The watches as a saved state has them.
    pub fn saved(&self) -> SavedWatches {
        SavedWatches {
            nodes: self.nodes.keys().copied().collect(),
            last_cookie: self.last_cookie,
            is_stopped: self.is_stopped,
        }
    }

    /// Watches again what was watched. What changed in between is lost, and the guest is told so.
    pub fn restore(&mut self, saved: SavedWatches) {
        self.last_cookie = saved.last_cookie;
        self.is_stopped = saved.is_stopped;
        for node in saved.nodes {
            // A file that is gone; the host may also have fewer marks to give.
            let _ = self.begin(node);
        }
        self.lost_after = Some(Bound::Unbounded);
    }

    /// Has the device wait for reports with `token`, if there is a new group.
    pub fn attach(&mut self, host: &mut dyn HostFds, token: u32) -> io::Result<()> {
        match &self.group {
            Some(group) if !self.is_attached => {
                host.watch(group.as_fd(), token, Readiness::READABLE)?;
                self.is_attached = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Keeps the guest's EVENTS request until there are events.
    pub fn wait(&mut self, ticket: Ticket) {
        if self.is_stopped {
            return ticket.answer(Err(Errno::NOTCONN));
        }
        if self.waiting.is_some() {
            return ticket.answer(Err(Errno::BUSY));
        }
        self.waiting = Some(ticket);
        self.answer();
    }

    /// Answers the request that waits, if there are events.
    pub fn answer(&mut self) {
        if self.waiting.is_none() {
            return;
        }
        let answer = self.next_answer();
        if !answer.is_empty()
            && let Some(ticket) = self.waiting.take()
        {
            ticket.answer(Ok(answer));
        }
    }

    /// The guest mounts anew, unmounts, or resets the device.
    pub fn reset(&mut self) {
        self.clear();
        self.is_stopped = false;
    }

    fn clear(&mut self) {
        self.nodes.clear();
        self.leave_empty_group();
        self.objects.clear();
        self.last_mount = None;
        self.events.clear();
        self.lost_after = None;
        if let Some(ticket) = self.waiting.take() {
            ticket.answer(Err(Errno::NOTCONN));
        }
    }

    fn warn_once(&mut self, message: &str) {
        if !self.has_warned {
            self.has_warned = true;
            log::warn!("fs: {message}");
        }
    }

    fn next_answer(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        loop {
            while let Some(event) = self.events.pop_front() {
                if answer.len() + event.encoded_bytes() > ANSWER_BYTES {
                    self.events.push_front(event);
                    return answer;
                }
                event.encode(&mut answer);
            }
            if !self.next_lost() && !self.read(None) {
                return answer;
            }
        }
    }

    /// The guest's request that concerned this inode has been executed, and may have changed it.
    pub fn executed(&mut self, node: u64) {
        while self.events.len() <= MAX_EVENTS && self.read(Some(node)) {}
        if self.events.len() > MAX_EVENTS {
            self.events.clear();
            self.lost_after = Some(Bound::Unbounded);
        }
        self.answer();
    }

    /// Reads reports of the host's kernel; false if there are none. What this process changed, it
    /// did for a request that concerned the inode `executed`.
    fn read(&mut self, executed: Option<u64>) -> bool {
        let Some(group) = &self.group else {
            return false;
        };
        match group.read(&mut [0; READ_BYTES]) {
            Ok(reports) => {
                let any = !reports.is_empty();
                for report in reports {
                    if let Some(by) = self.by_whom(&report, executed) {
                        self.tell(report, by);
                    }
                }
                any
            }
            Err(error) => {
                self.warn_once(&format!("read from fanotify: {error}"));
                false
            }
        }
    }

    fn by_whom(&mut self, report: &Report, executed: Option<u64>) -> Option<By> {
        if !report.own {
            return Some(By::Others);
        }
        let node = executed?;
        let mount = match self.last_mount {
            Some((last, mount)) if last == node => mount,
            _ => lend::with_path(&*self.fs, node, mount_of).ok()?,
        };
        self.last_mount = Some((node, mount));
        Some(By::Guest(mount))
    }

    /// Tells the next inode that its events were lost; false if all know.
    fn next_lost(&mut self) -> bool {
        let Some(after) = self.lost_after else {
            return false;
        };
        let next = self.nodes.range((after, Bound::Unbounded)).next();
        let next = next.map(|(&node, _)| node);
        self.lost_after = next.map(Bound::Excluded);
        if let Some(node) = next {
            self.push(node, libc::IN_Q_OVERFLOW, 0, &[]);
        }
        next.is_some()
    }
}

/// The host's id of the mount that a file is in.
fn mount_of(file: &File) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH;
    Ok(statx(file, c"", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

#[cfg(test)]
mod tests;
