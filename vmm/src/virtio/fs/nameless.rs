//! Files without a name: what open(2) with O_TMPFILE makes, and linkat(2) may give a name later.
//!
//! virtiofsd knows files by the names under which the guest looks them up, so it has no place for
//! these. Each is an open file here, and the guest uses it by its inode and handles as any other.

mod host;
mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Uid, XattrFlags};
use rustix::io::Errno;
use rvm_protocol::SHARED_CACHE_TIMEOUT;
use virtiofsd::filesystem::{
    Context, Entry, FileSystem, GetxattrReply, ListxattrReply, OpenOptions, SetattrValid,
    SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, CreateIn, SetattrIn};
use virtiofsd::oslib::{ScopedUmask, WritevFlags};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::passthrough::credentials::UnixCredentials;
use virtiofsd::passthrough::xattrmap::{AppliedRule, XattrMap};
use virtiofsd::soft_idmap::Id;

pub use self::host::number;
use self::host::{attributes, statvfs, times, without_setid};
pub use self::saved::KnownFile;
use super::files::{Handle, Inode};

/// The first number of an inode here, and of a handle. virtiofsd counts from 1 and never comes so
/// far.
pub const FIRST: u64 = 1 << 62;

/// The longest list or value of extended attributes, XATTR_LIST_MAX and XATTR_SIZE_MAX. A guest
/// could otherwise ask for buffers of any size.
const XATTR_BYTES: usize = 64 << 10;

/// The flags with which the guest may open a file here.
const GUESTS_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::TRUNC)
    .union(OFlags::DIRECT)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NONBLOCK);

pub struct Nameless {
    state: Mutex<State>,
    /// The most inodes and handles together. Each may be a descriptor of the process's.
    limit: usize,
    /// /proc/self/fd
    proc_self_fd: File,
    xattrs: XattrMap,
    has_adopted: AtomicBool,
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<Inode, Known>,
    handles: BTreeMap<Handle, (Inode, Arc<File>)>,
    next: u64,
    /// Inodes with numbers of virtiofsd's.
    adopted: BTreeSet<Inode>,
}

/// A file that the guest knows.
struct Known {
    file: Arc<File>,
    /// How often the guest must forget it.
    references: u64,
    /// It may get a name: it was opened without O_EXCL.
    is_linkable: bool,
}

impl Nameless {
    pub fn new(proc_self_fd: File, limit: usize, xattrs: XattrMap) -> Self {
        Self {
            state: Mutex::default(),
            limit,
            proc_self_fd,
            xattrs,
            has_adopted: AtomicBool::new(false),
        }
    }

    /// Whether an inode is one of these.
    pub fn owns(&self, inode: Inode) -> bool {
        let is_adopted = || self.lock().adopted.contains(&inode);
        inode >= FIRST || self.has_adopted.load(Ordering::Relaxed) && is_adopted()
    }

    /// /proc/self/fd
    pub fn proc_self_fd(&self) -> &File {
        &self.proc_self_fd
    }

    /// Forgets every file.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.inodes.clear();
        state.handles.clear();
        state.adopted.clear();
        self.has_adopted.store(false, Ordering::Relaxed);
    }

    /// Makes a file in the file system of a directory, with the rights of the guest's process.
    pub fn create(
        &self,
        context: Context,
        dir: &File,
        request: &CreateIn,
    ) -> io::Result<(Entry, Handle)> {
        self.check_limit(2)?;
        let flags = OFlags::from_bits_retain(request.flags);
        let excl = flags & OFlags::EXCL;
        let flags = (flags & GUESTS_FLAGS) | excl | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = {
            let (uid, gid) = (context.uid.into_inner(), context.gid.into_inner());
            // The capabilities remain (`jail/caps.rs`).
            let _identity = UnixCredentials::new(uid.into(), gid.into()).set()?;
            let _umask = ScopedUmask::new(request.umask & 0o777);
            let mode = Mode::from_raw_mode(request.mode & 0o7777);
            File::from(rustix::fs::openat(dir, c".", flags, mode)?)
        };
        let attr = attributes(&file)?;
        let file = Arc::new(file);
        let mut state = self.lock();
        let inode = FIRST + state.next;
        let known = Known {
            file: Arc::clone(&file),
            references: 1,
            is_linkable: excl.is_empty(),
        };
        state.inodes.insert(inode, known);
        let handle = state.add_handle(inode, file);
        let entry = Entry {
            inode,
            generation: 0,
            attr,
            attr_timeout: SHARED_CACHE_TIMEOUT,
            entry_timeout: SHARED_CACHE_TIMEOUT,
        };
        Ok((entry, handle))
    }

    /// linkat(2): gives a file a name in a directory.
    pub fn give_name(&self, inode: Inode, dir: &File, name: &CStr) -> io::Result<()> {
        let file = self.file(inode)?;
        let number = number(&file)?;
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(
            &self.proc_self_fd,
            &number,
            dir,
            name,
            follow,
        )?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_limit(&self, more: usize) -> io::Result<()> {
        let state = self.lock();
        if state.inodes.len() + state.handles.len() + more > self.limit {
            return Err(Errno::NFILE.into());
        }
        Ok(())
    }

    fn file(&self, inode: Inode) -> io::Result<Arc<File>> {
        let state = self.lock();
        let known = state.inodes.get(&inode).ok_or(Errno::BADF)?;
        Ok(Arc::clone(&known.file))
    }

    fn opened(&self, inode: Inode, handle: Handle) -> io::Result<Arc<File>> {
        match self.lock().handles.get(&handle) {
            Some((of, file)) if *of == inode => Ok(Arc::clone(file)),
            _ => Err(Errno::BADF.into()),
        }
    }

    fn either(&self, inode: Inode, handle: Option<Handle>) -> io::Result<Arc<File>> {
        handle.map_or_else(|| self.file(inode), |handle| self.opened(inode, handle))
    }

    fn reopen(&self, inode: Inode, flags: OFlags) -> io::Result<File> {
        let file = self.file(inode)?;
        let number = number(&file)?;
        let flags = flags | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.proc_self_fd, &number, flags, Mode::empty());
        Ok(opened?.into())
    }

    /// The name of an attribute on the host.
    fn on_host(&self, name: &CStr) -> io::Result<CString> {
        match self.xattrs.map_client_xattr(name) {
            Ok(AppliedRule::Pass(name)) => Ok(name.into_owned()),
            Ok(AppliedRule::Deny) => Err(Errno::PERM.into()),
            Ok(AppliedRule::Unsupported) | Err(_) => Err(Errno::NOTSUP.into()),
        }
    }
}

impl State {
    fn add_handle(&mut self, inode: Inode, file: Arc<File>) -> Handle {
        let handle = FIRST + self.next;
        self.next += 1;
        self.handles.insert(handle, (inode, file));
        handle
    }
}

impl FileSystem for Nameless {
    type Inode = Inode;
    type Handle = Handle;
    // There are no directories.
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn forget(&self, _context: Context, inode: Inode, count: u64) {
        let mut state = self.lock();
        if let Some(known) = state.inodes.get_mut(&inode) {
            known.references = known.references.saturating_sub(count);
            if known.references == 0 {
                state.inodes.remove(&inode);
            }
        }
    }

    fn getattr(
        &self,
        _context: Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(Attr, Duration)> {
        let file = self.either(inode, handle)?;
        Ok((attributes(&file)?, SHARED_CACHE_TIMEOUT))
    }

    fn setattr(
        &self,
        context: Context,
        inode: Inode,
        wanted: SetattrIn,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        let file = self.either(inode, handle)?;
        if valid.contains(SetattrValid::MODE) {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted.mode & 0o7777))?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let owner = valid.contains(SetattrValid::UID).then_some(wanted.uid);
            let group = valid.contains(SetattrValid::GID).then_some(wanted.gid);
            let owner = owner.map(|id| Uid::from_raw(id.into_inner()));
            let group = group.map(|id| Gid::from_raw(id.into_inner()));
            rustix::fs::chownat(&file, c"", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let _unprivileged = without_setid(valid.contains(SetattrValid::KILL_SUIDGID))?;
            rustix::fs::ftruncate(&file, wanted.size)?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            rustix::fs::futimens(&file, &times(&wanted, valid))?;
        }
        self.getattr(context, inode, handle)
    }

    fn statfs(&self, _context: Context, inode: Inode) -> io::Result<libc::statvfs64> {
        statvfs(self.file(inode)?.as_fd())
    }

    fn syncfs(&self, _context: Context, inode: Inode) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.file(inode)?)?)
    }

    fn open(
        &self,
        _context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        self.check_limit(1)?;
        let _unprivileged = without_setid(kill_priv)?;
        // O_PATH is the server's own wish.
        let wanted = OFlags::from_bits_retain(flags) & (GUESTS_FLAGS | OFlags::PATH);
        let file = Arc::new(self.reopen(inode, wanted)?);
        let handle = self.lock().add_handle(inode, file);
        Ok((Some(handle), OpenOptions::empty()))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        _context: Context,
        inode: Inode,
        handle: Handle,
        mut to: W,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let file = self.opened(inode, handle)?;
        to.read_from_file_at(&file, size as usize, offset, None)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        _context: Context,
        inode: Inode,
        handle: Handle,
        mut from: R,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        delayed: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let file = self.opened(inode, handle)?;
        let _unprivileged = without_setid(kill_priv)?;
        let append = !delayed && flags.cast_signed() & libc::O_APPEND != 0;
        let append = append.then_some(WritevFlags::RWF_APPEND);
        from.write_to_file_at(&file, size as usize, offset, append)
    }

    fn fallocate(
        &self,
        _context: Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        let file = self.opened(inode, handle)?;
        Ok(rustix::fs::fallocate(&file, mode, offset, length)?)
    }

    fn lseek(
        &self,
        _context: Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let position = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            // The guest's kernel knows the others itself.
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(&self.opened(inode, handle)?, position)?)
    }

    fn flush(
        &self,
        _context: Context,
        inode: Inode,
        handle: Handle,
        _owner: u64,
    ) -> io::Result<()> {
        self.opened(inode, handle).map(drop)
    }

    fn fsync(
        &self,
        _context: Context,
        inode: Inode,
        data_only: bool,
        handle: Handle,
    ) -> io::Result<()> {
        let file = self.opened(inode, handle)?;
        if data_only {
            file.sync_data()
        } else {
            file.sync_all()
        }
    }

    fn release(
        &self,
        _context: Context,
        inode: Inode,
        _flags: u32,
        handle: Handle,
        _flush: bool,
        _unlock: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.opened(inode, handle)?;
        self.lock().handles.remove(&handle);
        Ok(())
    }

    fn getxattr(
        &self,
        _context: Context,
        inode: Inode,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let name = self.on_host(name)?;
        let file = self.file(inode)?;
        let mut value = vec![0; (size as usize).min(XATTR_BYTES)];
        let length = rustix::fs::fgetxattr(&file, &name, value.as_mut_slice())?;
        if size == 0 {
            // An attribute has at most XATTR_BYTES.
            return Ok(GetxattrReply::Count(length as u32));
        }
        value.truncate(length);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _context: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply> {
        let file = self.file(inode)?;
        let mut names = vec![0; XATTR_BYTES];
        let length = rustix::fs::flistxattr(&file, names.as_mut_slice())?;
        names.truncate(length);
        let names = (self.xattrs.map_server_xattrlist(names)).map_err(|_| Errno::NOTSUP)?;
        // The map gives an empty name for none.
        let names = if names == [0] { Vec::new() } else { names };
        match size as usize {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            room if room < names.len() => Err(Errno::RANGE.into()),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn setxattr(
        &self,
        _context: Context,
        inode: Inode,
        name: &CStr,
        value: &[u8],
        flags: u32,
        _more_flags: SetxattrFlags,
    ) -> io::Result<()> {
        let name = self.on_host(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(rustix::fs::fsetxattr(
            &self.file(inode)?,
            &name,
            value,
            flags,
        )?)
    }

    fn removexattr(&self, _context: Context, inode: Inode, name: &CStr) -> io::Result<()> {
        let name = self.on_host(name)?;
        Ok(rustix::fs::fremovexattr(&self.file(inode)?, &name)?)
    }
}

#[cfg(test)]
mod tests;
