//! The directory of templates. Root alone can write it, and nothing in it is opened by way of a
//! symbolic link.
//!
//! ```text
//!   lock            held by the process that makes a template
//!   ID/             a template: key, state, memory, written
//!   ID.new/         one that is being made, or that a killed maker has left
//!   ID.failed       why none of this kind is made any more
//! ```
//!
//! A template is never written again, but that the first machine from it adds `written`: the pages
//! that it has written to. Whoever uses one has its files open, and keeps them when it
//! is removed or replaced. Only the holder of the lock puts a template in its place; anybody may
//! remove one, by the descriptor of its directory and so never another's of the same name.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, flock, fstatvfs,
    futimens, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use rvm_protocol::vmm::PageRun;
use serde::{Deserialize, Serialize};

use super::key::{Key, Kind, Shape, is_id};
use super::written::{self, WRITTEN};
use crate::host::read_only_file;
use rvm_sys::fault_point;

const LOCK: &str = "lock";
const KEY: &str = "key";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
pub(super) const CONSOLE: &str = "console.log";
pub(super) const SHARED: &str = "shared";

/// What a directory of a template that is being made is called, and the file about one that failed.
const NEW: &str = ".new";
const FAILED: &str = ".failed";

/// The longest key or note that is read, in bytes. A command line has 2 KiB, and a reason the end
/// of a console.
const MAX_TEXT: u64 = 64 << 10;

/// So many templates of a kind have to fail in use until none is made any more: one may have been
/// damaged.
const MAX_STRIKES: u8 = 2;

/// The directory of templates.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    dir: OwnedFd,
}

/// The lock of the one process that makes a template.
pub(super) struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it with a child that another thread is about to start.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// A template whose files are open.
#[derive(Debug)]
pub struct Template {
    store: Store,
    kind: Kind,
    pub(super) dir: OwnedFd,
    state: File,
    pub(super) memory: File,
    pub(super) written: Option<Vec<PageRun>>,
}

/// A template, as far as its directory tells.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) key: Key,
    /// What its files take, in bytes.
    pub(super) size: u64,
    pub(super) made: SystemTime,
    pub(super) used: SystemTime,
}

/// What is known of a kind whose templates fail.
#[derive(Serialize, Deserialize)]
struct Note {
    key: Key,
    reason: String,
    strikes: u8,
}

impl Store {
    /// Opens the directory. It must be root's alone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let dir = open_dir(CWD, path)?;
        let path = path.to_owned();
        Ok(Self { path, dir })
    }

    /// Opens the directory, and makes it first if it is not there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if let Some(parent) = path.parent() {
            let mut parents = fs::DirBuilder::new();
            parents.recursive(true).mode(0o711).create(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(path) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        Self::open(path)
    }

    /// Takes the lock, or returns none if another process has it; with `wait` it waits for that.
    pub(super) fn lock(&self, wait: bool) -> io::Result<Option<Lock>> {
        fault_point!("template.lock")?;
        let file = self.create_file(LOCK, OFlags::empty())?;
        let operation = match wait {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::io::retry_on_intr(|| flock(&file, operation)) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            locked => Ok(Some(locked.map(|()| Lock(file))?)),
        }
    }

    /// The template of this kind. The error says why what is there is none.
    pub(super) fn find(&self, kind: &Kind) -> io::Result<Template> {
        fault_point!("template.find")?;
        let (dir, [state, memory]) = self.open_template(kind)?;
        let written = read_text(dir.as_fd(), WRITTEN);
        Ok(Template {
            written: written.ok().and_then(|text| written::decode(&text)),
            store: Self {
                path: self.path.clone(),
                dir: self.dir.try_clone()?,
            },
            kind: kind.clone(),
            dir,
            state,
            memory,
        })
    }

    fn open_template(&self, kind: &Kind) -> io::Result<(OwnedFd, [File; 2])> {
        let dir = open_dir(self.dir.as_fd(), Path::new(&kind.id))?;
        if read_text(dir.as_fd(), KEY)? != kind.text {
            return Err(io::Error::other("it is of another kind"));
        }
        let files = read_only_file::open_all(dir.as_fd(), [STATE, MEMORY])?;
        for file in &files {
            check_owner(file.as_fd())?;
        }
        Ok((dir, files))
    }

    /// Why no template of this kind is made any more, if none is.
    pub(super) fn given_up(&self, kind: &Kind) -> Option<String> {
        let note = self.note(&kind.id).filter(|note| note.key == kind.key)?;
        (note.strikes >= MAX_STRIKES).then_some(note.reason)
    }

    /// Has no template of this kind made any more, until the host boots or rvm is upgraded.
    pub(super) fn give_up(&self, kind: &Kind, reason: &str) -> io::Result<()> {
        self.write_note(kind, reason, MAX_STRIKES)
    }

    /// Has templates of this kind made again.
    pub(super) fn forgive(&self, kind: &Kind) -> io::Result<()> {
        missing_is_fine(self.unlink(&format!("{}{FAILED}", kind.id)))
    }

    fn note(&self, id: &str) -> Option<Note> {
        let text = read_text(self.dir.as_fd(), &format!("{id}{FAILED}")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write_note(&self, kind: &Kind, reason: &str, strikes: u8) -> io::Result<()> {
        let note = Note {
            key: kind.key.clone(),
            reason: reason.to_owned(),
            strikes,
        };
        let file = self.create_file(&format!("{}{FAILED}", kind.id), OFlags::TRUNC)?;
        File::from(file).write_all(&serde_json::to_vec(&note)?)
    }

    /// The templates, those used last first.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let names = self.names()?.into_iter().filter(|name| is_id(name));
        let mut entries: Vec<Entry> = names
            .filter_map(|name| match self.entry(&name) {
                Ok(entry) => Some(entry),
                Err(error) => {
                    let place = self.path.join(name);
                    tracing::debug!("{} is no template: {error}", place.display());
                    None
                }
            })
            .collect();
        entries.sort_by_key(|entry| Reverse(entry.used));
        Ok(entries)
    }

    fn entry(&self, id: &str) -> io::Result<Entry> {
        let dir = open_dir(self.dir.as_fd(), Path::new(id))?;
        let key = serde_json::from_slice(&read_text(dir.as_fd(), KEY)?)?;
        let state = status(dir.as_fd(), STATE)?;
        let memory = status(dir.as_fd(), MEMORY)?;
        Ok(Entry {
            id: id.to_owned(),
            key,
            size: (state.blocks() + memory.blocks()) * 512,
            made: state.modified()?,
            used: File::from(dir).metadata()?.modified()?,
        })
    }

    /// Removes the template of this name. False if there is none.
    pub(super) fn remove(&self, id: &str) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.dir, id, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(false),
            dir => self.remove_opened(id, dir?.as_fd()).map(|_| true),
        }
    }

    /// Removes all templates and notes.
    pub(super) fn remove_all(&self) -> io::Result<()> {
        for name in self.names()? {
            if is_id(&name) {
                self.remove(&name)?;
            } else if name.strip_suffix(FAILED).is_some_and(is_id) {
                missing_is_fine(self.unlink(&name))?;
            }
        }
        Ok(())
    }

    /// Removes the files in the directory of a template, and the directory unless another template
    /// has taken its place. False if the template was removed before.
    fn remove_opened(&self, id: &str, dir: BorrowedFd<'_>) -> io::Result<bool> {
        // Without its key it is found no more.
        let was_there = match unlinkat(dir, KEY, AtFlags::empty()) {
            Err(Errno::NOENT) => false,
            other => other.map(|()| true)?,
        };
        for name in [STATE, MEMORY, WRITTEN] {
            missing_is_fine(unlinkat(dir, name, AtFlags::empty()).map_err(Into::into))?;
        }
        match unlinkat(&self.dir, id, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            other => other?,
        }
        Ok(was_there)
    }

    /// Removes what no start needs any more: what killed makers have left, and what is said of
    /// files that are no longer installed.
    pub(super) fn sweep(&self, _lock: &Lock) {
        let names = self.names().unwrap_or_default();
        for name in names.iter().filter(|name| self.is_left(name)) {
            self.report(name, self.remove_any(name));
        }
    }

    fn is_left(&self, name: &str) -> bool {
        if let Some(id) = name.strip_suffix(FAILED) {
            let is_current = |note: Note| note.key.is_current();
            return is_id(id) && !self.note(id).is_some_and(is_current);
        }
        match name.strip_suffix(NEW) {
            Some(id) => is_id(id),
            None => is_id(name) && !self.entry(name).is_ok_and(|entry| entry.key.is_current()),
        }
    }

    /// Removes the templates that were not used for longest, until there are `max`.
    pub(super) fn evict(&self, _lock: &Lock, max: u64) {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        for entry in self.entries().unwrap_or_default().iter().skip(max) {
            self.report(&entry.id, self.remove(&entry.id).map(drop));
        }
    }

    /// Logs that something could not be removed, which concerns no start.
    fn report(&self, name: &str, removed: io::Result<()>) {
        let place = self.path.join(name);
        match removed {
            Ok(()) => tracing::debug!("removed {}", place.display()),
            Err(error) => tracing::debug!("cannot remove {}: {error}", place.display()),
        }
    }

    /// The room in the directory's file system, in MiB.
    pub(super) fn room_mib(&self) -> io::Result<u64> {
        let room = fstatvfs(&self.dir)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize) >> 20)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            names.extend(entry?.file_name().to_str().map(str::to_owned));
        }
        Ok(names)
    }

    fn create_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(openat(&self.dir, name, flags, mode)?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    /// Removes a directory with all in it, or a file or link.
    fn remove_any(&self, name: &str) -> io::Result<()> {
        match self.unlink(name) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                let path = format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd());
                missing_is_fine(fs::remove_dir_all(path))
            }
            other => missing_is_fine(other),
        }
    }
}

impl Template {
    /// Whether it is of machines of this shape.
    pub(crate) fn has(&self, shape: Shape) -> bool {
        self.kind.key.shape == shape
    }

    /// Its state and its memory, each another descriptor. Neither can be written. None where no
    /// more descriptors can be opened.
    pub(crate) fn files(&self) -> Option<[File; 2]> {
        let state = self.state.try_clone().ok()?;
        Some([state, self.memory.try_clone().ok()?])
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // Else it may be removed before others.
        let _ = futimens(&self.dir, &times);
    }

    /// Removes it, since no machine comes up from it: the next start makes another. After some of
    /// those in a row none is made any more.
    pub(crate) fn discard(&self, reason: &str) {
        let (store, id) = (&self.store, &self.kind.id);
        let discarded = store
            .remove_opened(id, self.dir.as_fd())
            .and_then(|is_first| {
                if !is_first {
                    // Another machine has said so.
                    return Ok(());
                }
                let note = store.note(id).filter(|note| note.key == self.kind.key);
                let strikes = note.map_or(0, |note| note.strikes).saturating_add(1);
                store.write_note(&self.kind, reason, strikes)
            });
        if let Err(error) = discarded {
            tracing::warn!("cannot remove the template {id}: {error}");
        }
    }
}

/// A template that is being made. What is there of it goes when this is dropped.
pub(super) struct Draft<'a> {
    store: &'a Store,
    kind: &'a Kind,
    dir: OwnedFd,
    name: String,
}

impl<'a> Draft<'a> {
    /// Begins one. The lock's holder has removed what was left of earlier ones.
    pub(super) fn new(store: &'a Store, kind: &'a Kind, _lock: &Lock) -> io::Result<Self> {
        let name = format!("{}{NEW}", kind.id);
        mkdirat(&store.dir, &name, Mode::RWXU)?;
        let dir = open_dir(store.dir.as_fd(), Path::new(&name))?;
        let draft = Self {
            store,
            kind,
            dir,
            name,
        };
        mkdirat(&draft.dir, SHARED, Mode::RWXU)?;
        Ok(draft)
    }

    /// Where a file of it is until it is published.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.store.path.join(&self.name).join(name)
    }

    /// Makes a file of it, to be written and read.
    pub(super) fn create_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(openat(&self.dir, name, flags, mode)?.into())
    }

    /// Puts it into its place, where starts find it. Its machine has ended.
    pub(super) fn publish(self) -> io::Result<()> {
        self.create_file(KEY)?.write_all(&self.kind.text)?;
        fault_point!("template.publish")?;
        missing_is_fine(unlinkat(&self.dir, CONSOLE, AtFlags::empty()).map_err(Into::into))?;
        unlinkat(&self.dir, SHARED, AtFlags::REMOVEDIR)?;
        // What is there was found to be none.
        self.store.remove_any(&self.kind.id)?;
        Ok(renameat(
            &self.store.dir,
            &self.name,
            &self.store.dir,
            &self.kind.id,
        )?)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.store.remove_any(&self.name) {
            tracing::debug!("the next maker removes {}: {error}", self.name);
        }
    }
}

/// Opens a directory that is root's alone.
fn open_dir(parent: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, path, flags, Mode::empty())?;
    check_owner(dir.as_fd())?;
    Ok(dir)
}

fn check_owner(fd: BorrowedFd<'_>) -> io::Result<()> {
    let status = rustix::fs::fstat(fd)?;
    let others_write = Mode::from_raw_mode(status.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    match status.st_uid == 0 && !others_write {
        true => Ok(()),
        false => Err(io::Error::other("others than root can write it")),
    }
}

/// Reads a small file that is root's alone.
fn read_text(dir: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let file = open_file(dir, name)?;
    let mut text = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut text)?;
    Ok(text)
}

fn status(dir: BorrowedFd<'_>, name: &str) -> io::Result<fs::Metadata> {
    open_file(dir, name)?.metadata()
}

fn open_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    // One that is a pipe must not keep root waiting.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty())?;
    check_owner(file.as_fd())?;
    Ok(file.into())
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
