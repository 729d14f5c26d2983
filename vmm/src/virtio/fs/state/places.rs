//! Where the files are that the guest knows: virtiofsd has each open, and the host's kernel tells
//! the path of what is open.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use virtiofsd::filesystem::{FileSystem, ROOT_ID};
use virtiofsd::fuse::Attr;

use super::super::files::Files;
use super::super::lend::{server_itself, with_path};
use super::super::nameless::number;

/// What the kernel appends to the path of a file whose name was removed.
const REMOVED: &[u8] = b" (deleted)";

/// The shared directory.
pub struct Tree {
    root: File,
    path: Vec<u8>,
    proc_self_fd: File,
}

/// Where an open file is. Paths are below the shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Path(Vec<u8>),
    /// It had this path.
    Removed(Vec<u8>),
    /// The kernel tells this path, and something else or nothing is there.
    Elsewhere(Vec<u8>),
}

/// The file system and the number of a file.
pub type FileId = (u64, u64);

pub fn id_of(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

impl Tree {
    pub fn new(files: &Files) -> io::Result<Self> {
        let proc_self_fd = files.proc_self_fd().try_clone()?;
        let root = with_path(files, ROOT_ID, File::try_clone)?;
        let path = path_of(&proc_self_fd, &root)?;
        Ok(Self {
            root,
            path,
            proc_self_fd,
        })
    }

    /// Where an open file is, and what it is.
    pub fn find(&self, file: &File) -> io::Result<(Place, Stat)> {
        let stat = fstat(file)?;
        let path = match path_of(&self.proc_self_fd, file) {
            // So deep that it cannot be opened by its path either.
            Err(Errno::NAMETOOLONG) => b"a file whose path is too long".to_vec(),
            path => path?,
        };
        let Some(below) = self.below(&path) else {
            return Ok((Place::Elsewhere(path), stat));
        };
        let is_there = |path| {
            let found = self.open(path, OFlags::PATH).and_then(|at| Ok(fstat(at)?));
            found.is_ok_and(|found| id_of(&found) == id_of(&stat))
        };
        let place = match below.strip_suffix(REMOVED) {
            _ if is_there(below) => Place::Path(below.to_vec()),
            Some(path) => Place::Removed(path.to_vec()),
            None => Place::Elsewhere(below.to_vec()),
        };
        Ok((place, stat))
    }

    fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let below = path.strip_prefix(self.path.as_slice())?;
        match self.path.ends_with(b"/") {
            true => Some(below),
            false => below.strip_prefix(b"/"),
        }
    }

    /// Opens what is at a path, along no symbolic link and not above the shared directory.
    pub fn open(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = OsStr::from_bytes(path);
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?.into())
    }

    /// The directory in which a path lies, or lay: the nearest one above it that is there.
    pub fn directory_of(&self, path: &[u8]) -> io::Result<File> {
        let above = Path::new(OsStr::from_bytes(path)).ancestors().skip(1);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let names = above.map(|path| path.as_os_str().as_bytes());
        let open = |path: &[u8]| self.open(path, flags).ok();
        match names.filter(|path| !path.is_empty()).find_map(open) {
            Some(dir) => Ok(dir),
            None => self.root.try_clone(),
        }
    }

    /// Another name of a file that had this path, in the same directory. The kernel tells of one
    /// name alone, and others may be anywhere. Looks at `left` entries at most, and counts them.
    pub fn other_name(&self, path: &[u8], id: FileId, left: &mut u32) -> Option<Vec<u8>> {
        let end = path.iter().rposition(|&byte| byte == b'/');
        let directory = end.map_or(b".".as_slice(), |end| &path[..end]);
        let directory = self.open(directory, OFlags::DIRECTORY).ok()?;
        let entries = Dir::read_from(&directory).ok()?;
        for entry in entries.flatten() {
            *left = left.checked_sub(1)?;
            let found = statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            if found.is_ok_and(|found| id_of(&found) == id) {
                let directory = end.map_or(b"".as_slice(), |end| &path[..=end]);
                return Some([directory, entry.file_name().to_bytes()].concat());
            }
        }
        None
    }

    /// What virtiofsd has open and opens for nobody: symbolic links, FIFOs, sockets, devices.
    pub fn specials(&self) -> io::Result<Specials> {
        let mut found = BTreeMap::<_, Vec<_>>::new();
        // A descriptor of a mount cannot be read itself.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&self.proc_self_fd, ".", flags, Mode::empty())?;
        for entry in Dir::new(directory)? {
            let entry = entry?;
            // A descriptor that was closed meanwhile, or that is no file.
            let Ok(path) = readlinkat(&self.proc_self_fd, entry.file_name(), Vec::new()) else {
                continue;
            };
            let Some(below) = self.below(path.to_bytes()) else {
                continue;
            };
            let Ok(file) = self.open(below, OFlags::PATH) else {
                continue;
            };
            let stat = fstat(&file)?;
            if !matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
                let fsid = rustix::fs::fstatvfs(&file)?.f_fsid;
                let key = (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
                let path = below.to_vec();
                let special = Special { path, fsid, stat };
                found.entry(key).or_default().push(special);
            }
        }
        Ok(Specials(found))
    }
}

/// By number, and time of the last change.
pub struct Specials(BTreeMap<(u64, i64, u64), Vec<Special>>);

struct Special {
    path: Vec<u8>,
    fsid: u64,
    stat: Stat,
}

impl Specials {
    /// The path of an inode of the guest's with these attributes. In two mounts of one file system
    /// it has two, which are the same file.
    pub fn find(&self, files: &Files, inode: u64, known: &Attr) -> Option<(&[u8], Stat)> {
        let ctime = (known.ctime.cast_signed(), known.ctimensec.into());
        let all = self.0.get(&(known.ino, ctime.0, ctime.1))?;
        let fsid = files.statfs(server_itself(), inode).ok()?.f_fsid;
        let same = |special: &&Special| special.fsid == fsid && special.stat.st_mode == known.mode;
        let special = all.iter().find(same)?;
        Some((&special.path, special.stat))
    }
}

/// The path of an open file as the kernel tells it.
fn path_of(proc_self_fd: &File, file: &File) -> Result<Vec<u8>, Errno> {
    let number = number(file).map_err(|_| Errno::INVAL)?;
    let path = readlinkat(proc_self_fd.as_fd(), &number, Vec::new())?;
    match path.to_bytes() {
        path if path.starts_with(b"/") => Ok(path.to_vec()),
        _ => Err(Errno::NOENT),
    }
}
