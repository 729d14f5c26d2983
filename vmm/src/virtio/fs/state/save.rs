//! Saving.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use rustix::fs::Stat;
use virtiofsd::filesystem::{FileSystem, ROOT_ID};

use super::super::files::Files;
use super::super::lend::{server_itself, with_contents, with_path};
use super::super::nameless::KnownFile;
use super::super::{DeviceIo, Fs};
use super::contents::Contents;
use super::mirror::{self, Server, Source};
use super::places::{self, FileId, Specials, Tree, id_of};
use super::removed::Store;
use super::{Handle, Inode, Place, Session, shown};
use crate::virtio::budget::Budget;
use crate::virtio::device::Busy;

/// How long requests that other threads execute may take to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most entries of directories among which other names of files are looked for.
const MAX_ENTRIES: u32 = 100_000;

/// The state of the device, empty if no file system is mounted. Requests that wait for others stay
/// where they are.
pub fn save(fs: &mut Fs, io: &mut DeviceIo<'_>) -> Result<Vec<u8>, Busy> {
    (fs.resume(io)).map_err(|error| busy("execute a request", &error))?;
    // The guest does not run, so its queues become empty.
    while !fs.front.interrupted.is_empty() {
        io.budget = Budget::default();
        (fs.interrupt(io)).map_err(|error| busy("interrupt a request", &error))?;
    }
    if !fs.front.slow.wait_until_idle(PATIENCE) {
        return Err(Busy("an fsync(2) or a copy takes long".into()));
    }
    (fs.process_replies(io)).map_err(|error| busy("answer a request", &error))?;
    let Some(init) = fs.front.init.clone() else {
        return Ok(Vec::new());
    };
    let files = fs.files();
    let server =
        Server::of(files.named()).map_err(|error| busy("save virtiofsd's state", &error))?;
    if server.inodes.is_empty() {
        // INIT has failed.
        return Ok(Vec::new());
    }
    let handles = handles(&server, &files).map_err(|error| busy("list the open files", &error))?;
    let locks = fs.front.locks.saved(&fs.infos);
    let mut session = Session {
        init,
        options: server.options,
        inodes: Vec::new(),
        next_inode: server.next_inode,
        next_handle: server.next_handle,
        nameless_made: files.nameless().made(),
        versions: fs.front.opens().saved(),
        locks: locks.map_err(|error| busy("find the locks of files", &error))?,
        watches: fs.front.watches.saved(),
        kept: (fs.front.deferred.kept())
            .map(|origin| (origin.queue, origin.head))
            .collect(),
        handles,
    };
    let store = Store::new(&fs.removed);
    Search::new(&files, &session.handles, store)
        .and_then(|search| search.all(server.inodes, &mut session))?;
    let lost = files.lost().all().into_iter();
    let lost = lost.map(|(id, references)| Inode::lost(id, references));
    session.inodes.extend(lost);
    postcard::to_stdvec(&session).map_err(|error| busy("encode the state", &error))
}

fn busy(action: &str, error: &dyn std::error::Error) -> Busy {
    Busy(format!("cannot {action}: {error}").into())
}

/// The handles of files with and without a name.
fn handles(server: &Server, files: &Files) -> io::Result<Vec<Handle>> {
    let named = server.handles.iter().map(|handle| {
        let Source::Open(flags) = handle.source;
        (handle.id, handle.inode, flags)
    });
    let nameless = files.nameless().opened_handles()?;
    let all = named.chain(nameless);
    let all = all.map(|(id, inode, flags)| Handle { id, inode, flags });
    Ok(all.collect())
}

impl Inode {
    fn lost(id: u64, references: u64) -> Self {
        Self {
            id,
            references,
            kind: 0,
            file: (0, 0),
            place: Place::Lost,
        }
    }
}

/// The search for the places of files.
struct Search<'a> {
    files: &'a Files,
    tree: Tree,
    specials: Option<Specials>,
    /// The inodes that the guest has open.
    opened: BTreeSet<u64>,
    /// Paths by what is there.
    found: BTreeMap<FileId, Vec<u8>>,
    store: Store,
    /// How many more entries of directories are looked at.
    left_entries: u32,
}

impl<'a> Search<'a> {
    fn new(files: &'a Files, handles: &[Handle], store: Store) -> Result<Self, Busy> {
        let tree = Tree::new(files);
        Ok(Self {
            files,
            tree: tree.map_err(|error| busy("find the shared directory", &error))?,
            specials: None,
            opened: handles.iter().map(|handle| handle.inode).collect(),
            found: BTreeMap::new(),
            store,
            left_entries: MAX_ENTRIES,
        })
    }

    fn all(mut self, named: Vec<mirror::Inode>, session: &mut Session) -> Result<(), Busy> {
        for inode in named {
            let found = self.named(&inode)?;
            session.inodes.push(found);
        }
        for known in self.files.nameless().known() {
            let found = self.nameless(&known)?;
            session.inodes.push(found);
        }
        // A removed directory that is open has nothing to read any more.
        let lost = session
            .inodes
            .iter()
            .filter(|inode| matches!(inode.place, Place::Lost));
        let lost: BTreeSet<u64> = lost.map(|inode| inode.id).collect();
        session
            .handles
            .retain(|handle| !lost.contains(&handle.inode));
        Ok(())
    }

    fn named(&mut self, inode: &mirror::Inode) -> Result<Inode, Busy> {
        let (id, references) = (inode.id, inode.references);
        let found = with_path(self.files, id, |file| self.tree.find(file));
        let (place, stat) = match found {
            Ok((_, stat)) if id == ROOT_ID => (Place::Root, stat),
            Ok((places::Place::Path(path), stat)) => {
                self.found.insert(id_of(&stat), path.clone());
                (Place::Path(path), stat)
            }
            Ok((place, stat)) => (self.without_path(id, place, &stat)?, stat),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                return self.special(id, references);
            }
            Err(error) => return Err(busy("find a file", &error)),
        };
        Ok(Inode {
            id,
            references,
            kind: stat.st_mode & libc::S_IFMT,
            file: id_of(&stat),
            place,
        })
    }

    /// What becomes of a file or a directory that is not at its path any more.
    fn without_path(&mut self, id: u64, place: places::Place, stat: &Stat) -> Result<Place, Busy> {
        let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let path = match place {
            _ if !self.opened.contains(&id) => return Ok(Place::Lost),
            places::Place::Removed(_) if is_directory => return Ok(Place::Lost),
            places::Place::Removed(path) if stat.st_nlink == 0 => path,
            places::Place::Removed(path) => return self.renamed(&path, stat),
            places::Place::Path(path) | places::Place::Elsewhere(path) => {
                let path = shown(&path);
                let reason = format!("{path} is open and no longer below the shared directory");
                return Err(Busy(reason.into()));
            }
        };
        self.contents(id, path, false)
    }

    /// A file that is open and whose name is gone, while it has another one.
    fn renamed(&mut self, path: &[u8], stat: &Stat) -> Result<Place, Busy> {
        let other = (self.tree).other_name(path, id_of(stat), &mut self.left_entries);
        other.map(Place::Path).ok_or_else(|| {
            let path = shown(path);
            Busy(format!("{path} is open, and of its names only an unknown one is left").into())
        })
    }

    /// What a file holds that has no name, and had this path.
    fn contents(&mut self, id: u64, path: Vec<u8>, is_linkable: bool) -> Result<Place, Busy> {
        let read = with_contents(self.files, id, |file| {
            Contents::read(file, is_linkable, &mut self.store)
        });
        let contents = read.map_err(|error| unreadable(&path, &error))?;
        Ok(Place::Nameless(path, contents))
    }

    fn nameless(&mut self, known: &KnownFile) -> Result<Inode, Busy> {
        let found = self.tree.find(&known.file);
        let (place, stat) = found.map_err(|error| busy("find a file", &error))?;
        let place = match (place, self.found.get(&id_of(&stat))) {
            (places::Place::Path(path), _) => Place::Path(path),
            (_, Some(path)) => Place::Path(path.clone()),
            _ if !self.opened.contains(&known.inode) => Place::Lost,
            (places::Place::Removed(path) | places::Place::Elsewhere(path), _) => {
                match stat.st_nlink {
                    0 => self.contents(known.inode, path, known.is_linkable)?,
                    _ => self.renamed(&path, &stat)?,
                }
            }
        };
        Ok(Inode {
            id: known.inode,
            references: known.references,
            kind: stat.st_mode & libc::S_IFMT,
            file: id_of(&stat),
            place,
        })
    }

    /// A symbolic link, a FIFO, a socket or a device, which cannot be open here.
    fn special(&mut self, id: u64, references: u64) -> Result<Inode, Busy> {
        let specials = match self.specials.take() {
            Some(specials) => specials,
            None => (self.tree.specials()).map_err(|error| busy("list open files", &error))?,
        };
        let specials = self.specials.insert(specials);
        let known = self.files.getattr(server_itself(), id, None);
        let known = known.map_err(|error| busy("find a file", &error))?.0;
        let found = specials.find(self.files, id, &known);
        Ok(found.map_or_else(
            || Inode::lost(id, references),
            |(path, stat)| Inode {
                id,
                references,
                kind: stat.st_mode & libc::S_IFMT,
                file: id_of(&stat),
                place: Place::Path(path.to_vec()),
            },
        ))
    }
}

fn unreadable(path: &[u8], error: &io::Error) -> Busy {
    let path = shown(path);
    Busy(match error.raw_os_error() {
        Some(libc::EFBIG) => {
            format!("the files that are open and removed hold too much, with {path}").into()
        }
        _ => format!("cannot read {path}, which is open and removed: {error}").into(),
    })
}
