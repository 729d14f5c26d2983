//! Restoring.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{OFlags, fstat};

use super::super::files::Files;
use super::super::lend::with_handle;
use super::super::nameless::{FIRST, KnownFile};
use super::super::{DeviceError, DeviceIo, Fs, NAME};
use super::check::checked;
use super::mirror::{self, Location, Server, Source};
use super::places::{FileId, Tree, id_of};
use super::removed::Store;
use super::{Handle, Inode, Place, Session, replay, shown};

/// The most paths that a message names.
const MAX_NAMED: usize = 10;

/// The flags with which a file is opened again.
const FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::DIRECT)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECTORY);

/// Gives a device that has just been started the state that another one was saved with.
pub fn restore(fs: &mut Fs, state: &[u8], io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
    if state.is_empty() {
        return Ok(());
    }
    let session = postcard::from_bytes(state).ok().and_then(checked);
    let session: Session = session.ok_or_else(|| refused("the state is damaged".to_owned()))?;
    replay::init(fs, &session.init)?;
    fs.front.init = Some(session.init);

    let files = fs.files();
    let tree = Tree::new(&files).map_err(DeviceError::host(NAME, "open the shared directory"))?;
    let store = Store::new(&fs.removed);
    let mut plan = Plan::new(&tree, &store, &session.handles);
    // What is missing is told before much is written.
    let (removed, others): (Vec<Inode>, Vec<Inode>) =
        (session.inodes.into_iter()).partition(|inode| matches!(inode.place, Place::Nameless(..)));
    others.into_iter().try_for_each(|inode| plan.add(inode))?;
    plan.check_vanished()?;
    removed.into_iter().try_for_each(|inode| plan.add(inode))?;
    let paths = plan.paths;
    let path = |inode: u64| {
        paths
            .get(&inode)
            .map_or_else(|| "a file".to_owned(), |path| shown(path))
    };

    let is_nameless = |inode: u64| plan.nameless.contains_key(&inode);
    let (nameless, named): (Vec<Handle>, Vec<Handle>) =
        (session.handles.into_iter()).partition(|handle| is_nameless(handle.inode));
    let server = Server {
        inodes: plan.named,
        next_inode: session.next_inode,
        handles: named.iter().map(of_virtiofsd).collect(),
        next_handle: session.next_handle,
        options: session.options,
    };
    let given = server.give(files.named());
    given.map_err(|error| refused(format!("a file cannot be opened again: {error}")))?;
    adopt(&files, plan.nameless.into_values(), &nameless, path)?;
    files.nameless().set_made(session.nameless_made);
    for handle in &named {
        let opened = with_handle(&*files, handle.inode, handle.id, |_| Ok(()));
        opened.map_err(|error| refused(format!("{}: {error}", path(handle.inode))))?;
    }

    let same = plan.same;
    (fs.front.opens()).restore(session.versions, |inode| same.contains(&inode));
    (fs.front.locks.restore(session.locks)).map_err(|lock| {
        let (path, error) = (path(lock.inode), lock.error);
        refused(format!("{path} cannot be locked again as it was: {error}"))
    })?;
    fs.front.watches.restore(session.watches);
    files.lost().set(plan.lost);
    fs.front.restored.kept = session.kept;
    fs.front.restored.is_new = true;
    fs.front.deferred.wake();
    fs.attach_watches(io)
}

fn refused(reason: String) -> DeviceError {
    DeviceError::State {
        device: NAME,
        reason,
    }
}

/// What is to be done with each inode.
struct Plan<'a> {
    tree: &'a Tree,
    store: &'a Store,
    opened: BTreeSet<u64>,
    named: Vec<mirror::Inode>,
    nameless: BTreeMap<u64, KnownFile>,
    lost: BTreeMap<u64, u64>,
    /// Open files that are no longer there.
    vanished: Vec<Vec<u8>>,
    /// The inodes whose files are those of the time when the state was saved.
    same: BTreeSet<u64>,
    paths: BTreeMap<u64, Vec<u8>>,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a Tree, store: &'a Store, handles: &[Handle]) -> Self {
        Self {
            tree,
            store,
            opened: handles.iter().map(|handle| handle.inode).collect(),
            named: Vec::new(),
            nameless: BTreeMap::new(),
            lost: BTreeMap::new(),
            vanished: Vec::new(),
            same: BTreeSet::new(),
            paths: BTreeMap::new(),
        }
    }

    fn add(&mut self, inode: Inode) -> Result<(), DeviceError> {
        let id = inode.id;
        match &inode.place {
            Place::Root => self.add_named(&inode, Location::Root),
            Place::Lost => {
                self.lost.insert(id, inode.references);
            }
            Place::Path(path) => {
                self.paths.insert(id, path.clone());
                match self.found(path, inode.kind) {
                    Some(file) => {
                        if file == inode.file {
                            self.same.insert(id);
                        }
                        self.add_path(&inode, path)?;
                    }
                    None if self.opened.contains(&id) => self.vanished.push(path.clone()),
                    None => {
                        self.lost.insert(id, inode.references);
                    }
                }
            }
            Place::Nameless(path, contents) => {
                self.paths.insert(id, path.clone());
                let made = contents
                    .create(self.tree, path, self.store)
                    .map_err(|error| {
                        let path = shown(path);
                        refused(format!(
                            "{path}, which was removed, cannot be made again: {error}"
                        ))
                    })?;
                self.add_nameless(&inode, contents.is_linkable, made);
            }
        }
        Ok(())
    }

    /// What is at a path, if it is of this kind.
    fn found(&self, path: &[u8], kind: u32) -> Option<FileId> {
        let file = self.tree.open(path, OFlags::PATH).ok()?;
        let stat = fstat(&file).ok()?;
        (stat.st_mode & libc::S_IFMT == kind).then(|| id_of(&stat))
    }

    /// virtiofsd finds files by paths that are text. Others are served as if they had no name as
    /// long as they are open, and otherwise looked up again by the guest.
    fn add_path(&mut self, inode: &Inode, path: &[u8]) -> Result<(), DeviceError> {
        let is_opened = self.opened.contains(&inode.id);
        match std::str::from_utf8(path) {
            Ok(text) if inode.id < FIRST => self.add_named(inode, Location::Path(text.to_owned())),
            _ if is_opened && inode.kind == libc::S_IFREG => {
                let opened = (self.tree.open(path, OFlags::RDWR))
                    .or_else(|_| self.tree.open(path, OFlags::RDONLY));
                let file = opened.map_err(|error| {
                    let path = shown(path);
                    refused(format!("{path} cannot be opened again: {error}"))
                })?;
                self.add_nameless(inode, true, file);
            }
            _ if is_opened => self.vanished.push(path.to_vec()),
            _ => {
                self.lost.insert(inode.id, inode.references);
            }
        }
        Ok(())
    }

    fn add_named(&mut self, inode: &Inode, location: Location) {
        self.named.push(mirror::Inode {
            id: inode.id,
            references: inode.references,
            location,
            file_handle: None,
        });
    }

    fn add_nameless(&mut self, inode: &Inode, is_linkable: bool, file: File) {
        let known = KnownFile {
            inode: inode.id,
            references: inode.references,
            is_linkable,
            file: Arc::new(file),
        };
        self.nameless.insert(inode.id, known);
    }

    fn check_vanished(&self) -> Result<(), DeviceError> {
        let named: Vec<String> = (self.vanished.iter().take(MAX_NAMED))
            .map(|path| shown(path))
            .collect();
        match self.vanished.len() {
            0 => Ok(()),
            count => {
                let more = match count.saturating_sub(MAX_NAMED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let named = named.join(", ");
                Err(refused(format!(
                    "programs have files open that are no longer there: {named}{more}"
                )))
            }
        }
    }
}

fn of_virtiofsd(handle: &Handle) -> mirror::Handle {
    let flags = OFlags::from_bits_retain(handle.flags.cast_unsigned()) & FLAGS | OFlags::CLOEXEC;
    mirror::Handle {
        id: handle.id,
        inode: handle.inode,
        source: Source::Open(flags.bits().cast_signed()),
    }
}

/// Takes over files without a name, and their handles.
fn adopt(
    files: &Files,
    inodes: impl Iterator<Item = KnownFile>,
    handles: &[Handle],
    path: impl Fn(u64) -> String,
) -> Result<(), DeviceError> {
    let failed = |inode, error| refused(format!("{} cannot be opened again: {error}", path(inode)));
    for known in inodes {
        let inode = known.inode;
        (files.nameless().adopt(known)).map_err(|error| failed(inode, error))?;
    }
    for handle in handles {
        let adopted = (files.nameless()).adopt_handle(handle.id, handle.inode, handle.flags);
        adopted.map_err(|error| failed(handle.inode, error))?;
    }
    Ok(())
}
