//! What the guest is told of a report of the host's kernel.

use std::ffi::CString;
use std::io;
use std::ops::Bound;

use virtiofsd::filesystem::FileSystem;

use super::super::fanotify::{Identity, Place, Report};
use super::super::lend;
use super::{By, Watches};

/// `struct fuse_event` up to the name.
pub(super) const EVENT_HEADER_BYTES: usize = 20;

/// The events that a change of an entry raises for its directory.
const ENTRY_EVENTS: u32 = libc::IN_CREATE | libc::IN_DELETE;

/// The events that concern an inode whatever it is called.
const SELF_EVENTS: u32 = libc::IN_MOVE_SELF | libc::IN_DELETE_SELF;

/// Distinguishes the cookies from those of the guest's kernel, which counts from 1.
const COOKIES: u32 = 1 << 31;

/// One event for one inode of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    node: u64,
    mask: u32,
    cookie: u32,
    /// Empty if the inode itself changed.
    name: Vec<u8>,
}

impl Watches {
    pub(super) fn push(&mut self, node: u64, mask: u32, cookie: u32, name: &[u8]) {
        let event = Event {
            node,
            mask,
            cookie,
            name: name.to_vec(),
        };
        // As inotify does.
        if self.events.back() != Some(&event) {
            self.events.push_back(event);
        }
    }

    /// The inodes that watch an object and do not know of a change.
    fn watching(&self, object: &Identity, by: By) -> Vec<u64> {
        let nodes = self.objects.get(object).into_iter().flatten().copied();
        nodes
            .filter(|node| match (by, self.nodes.get(node)) {
                (By::Guest(mount), Some(node)) => node.mount != mount,
                _ => true,
            })
            .collect()
    }

    fn push_to_dir(&mut self, place: &Place, by: By, mask: u32, cookie: u32) {
        for node in self.watching(&place.dir, by) {
            self.push(node, mask, cookie, &place.name);
        }
    }

    fn push_to_object(&mut self, object: Option<&Identity>, by: By, mask: u32) {
        for node in object.map_or_else(Vec::new, |object| self.watching(object, by)) {
            self.push(node, mask, 0, &[]);
        }
    }

    /// Makes the events of a report.
    pub(super) fn tell(&mut self, report: Report, by: By) {
        // The lower half has the bits of inotify, and the upper none that was asked for.
        let mask = (report.mask & u64::from(u32::MAX)) as u32;
        if mask & libc::IN_Q_OVERFLOW != 0 {
            self.lost_after = Some(Bound::Unbounded);
        }
        if report.mask & libc::FAN_RENAME != 0 {
            return self.tell_rename(&report, by, mask & libc::IN_ISDIR);
        }
        let (place, object) = match report.place {
            Some(Place { dir, name }) if name == b"." => (None, Some(dir)),
            place => (place, report.object),
        };
        for event in self.in_order(mask, by, place.as_ref()) {
            if event == libc::IN_DELETE {
                self.tell_if_gone(object.as_ref(), by);
            }
            if let Some(place) = place.as_ref().filter(|_| event & SELF_EVENTS == 0) {
                self.push_to_dir(place, by, event | mask & libc::IN_ISDIR, 0);
            }
            if event & ENTRY_EVENTS == 0 {
                self.push_to_object(object.as_ref(), by, event);
            }
            // The number of its links changed.
            if event == libc::IN_ATTRIB && place.is_none() {
                self.tell_if_gone(object.as_ref(), by);
            }
        }
    }

    /// Whether the last link of an inode was removed.
    fn is_gone(&self, node: u64) -> bool {
        (self.fs.getattr(lend::server_itself(), node, None))
            .is_ok_and(|(attributes, _)| attributes.nlink == 0)
    }

    fn exists(&self, dir: u64, name: &[u8]) -> bool {
        let entry = CString::new(name)
            .map_err(io::Error::from)
            .and_then(|name| self.fs.lookup(lend::server_itself(), dir, &name));
        if let Ok(entry) = &entry {
            self.fs.forget(lend::server_itself(), entry.inode, 1);
        }
        entry.is_ok()
    }

    fn tell_rename(&mut self, report: &Report, by: By, is_dir: u32) {
        self.last_cookie = self.last_cookie.wrapping_add(1);
        let cookie = COOKIES | self.last_cookie;
        for (place, event) in [
            (&report.from, libc::IN_MOVED_FROM),
            (&report.to, libc::IN_MOVED_TO),
        ] {
            if let Some(place) = place {
                self.push_to_dir(place, by, event | is_dir, cookie);
            }
        }
    }

    /// The descriptors of virtiofsd keep the host from telling that a file was removed.
    fn tell_if_gone(&mut self, object: Option<&Identity>, by: By) {
        let nodes = object.map_or_else(Vec::new, |object| self.watching(object, by));
        if nodes.first().is_some_and(|&node| self.is_gone(node)) {
            self.push_to_object(object, by, libc::IN_DELETE_SELF);
        }
    }

    /// The events of a report in the order in which a file lives. A report does not say whether a
    /// name was removed and made again, or made and removed; whether it exists does.
    fn in_order(
        &self,
        mask: u32,
        by: By,
        place: Option<&Place>,
    ) -> impl Iterator<Item = u32> + use<> {
        let is_both = mask & ENTRY_EVENTS == ENTRY_EVENTS;
        let is_remade = is_both
            && place.is_some_and(|place| {
                (self.watching(&place.dir, by).first())
                    .is_some_and(|&dir| self.exists(dir, &place.name))
            });
        let (first, last) = if is_remade {
            (libc::IN_DELETE, 0)
        } else {
            (0, libc::IN_DELETE)
        };
        [
            first,
            libc::IN_CREATE,
            libc::IN_MODIFY,
            libc::IN_ATTRIB,
            libc::IN_CLOSE_WRITE,
            libc::IN_MOVE_SELF,
            last,
            libc::IN_DELETE_SELF,
        ]
        .into_iter()
        .filter(move |event| mask & event != 0)
    }
}

impl Event {
    pub(super) fn encoded_bytes(&self) -> usize {
        (EVENT_HEADER_BYTES + self.name.len() + 1).next_multiple_of(8)
    }

    /// Appends `struct fuse_event` of the guest's patch.
    pub(super) fn encode(&self, answer: &mut Vec<u8>) {
        let end = answer.len() + self.encoded_bytes();
        answer.extend(self.node.to_le_bytes());
        for number in [self.mask, self.cookie, self.name.len() as u32] {
            answer.extend(number.to_le_bytes());
        }
        answer.extend(&self.name);
        answer.resize(end, 0);
    }
}
