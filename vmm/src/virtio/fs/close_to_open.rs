//! The file system that the device serves: virtiofsd's, with close-to-open consistency that does
//! not drop the guest's page cache at every open.
//!
//! virtiofsd answers opens in one of two ways. Without KEEP_CACHE the guest's kernel drops the
//! file's pages, even those that running programs have mapped, and reads them again: each exec of a
//! shell slows down the shells that run. With KEEP_CACHE the guest never sees a change that shows
//! in neither mtime nor size. Here the answer depends on the file, as with libfuse's `auto_cache`;
//! `versions.rs` decides.

use std::cell::LazyCell;
use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};

use super::files::{Files, Handle, Inode, plain_methods};
use super::lend;
use super::nodes::{self, Node};
use super::numbers::{NO_VALUE, Number};
use super::versions::{Version, Versions};

/// Those that take file times from the kernel's clock and do nothing at a close(2), by their
/// numbers of statfs(2). A network file system writes then, and can fail.
const LOCAL_FILE_SYSTEMS: &[i64] = &[
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
    ZFS_SUPER_MAGIC,
];

const ZFS_SUPER_MAGIC: i64 = 0x2fc1_2fc1;

/// Clones share their state.
#[derive(Clone)]
pub struct CloseToOpen {
    inner: Arc<Files>,
    versions: Arc<Mutex<Versions>>,
    /// The directory in which a file was made last, and whether its files are local. Its number is
    /// no other directory's later.
    made_in: Arc<Mutex<Option<(Inode, bool)>>>,
    /// The time since 1970.
    clock: fn() -> Duration,
}

/// What the guest learns of a file that it has opened.
pub struct Opened {
    pub handle: Option<Handle>,
    pub options: OpenOptions,
    /// And how long they may be kept.
    pub attributes: Option<(Attr, Duration)>,
    /// By which it may ask whether the answer would be the same.
    pub number: Option<Number>,
}

impl CloseToOpen {
    /// Serves `inner`, whose own choice of KEEP_CACHE is ignored.
    pub fn new(inner: Arc<Files>) -> Self {
        Self {
            inner,
            versions: Arc::default(),
            made_in: Arc::default(),
            clock: since_1970,
        }
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a file, and answers with its attributes, too. The guest needs them to read what it
    /// has opened.
    pub fn open_with_attributes(
        &self,
        context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<Opened> {
        let (handle, mut options) = self.inner.open(context, inode, kill_priv, flags)?;
        // Read after the file was opened, so that what the guest reads is not older.
        let attributes = self.inner.getattr(context, inode, handle).ok();
        let is_local = LazyCell::new(|| self.is_local(inode, handle));
        let may_keep = (attributes.as_ref())
            .is_some_and(|(known, _)| self.may_keep(inode, known, || *is_local));
        options.set(OpenOptions::KEEP_CACHE, may_keep);
        let reads = flags.cast_signed() & libc::O_ACCMODE == libc::O_RDONLY;
        options.set(OpenOptions::NOFLUSH, reads || *is_local);
        let number = (attributes.as_ref())
            .filter(|(known, _)| known.mode & libc::S_IFMT == libc::S_IFREG && *is_local)
            .and_then(|(known, _)| self.versions().number(inode, Version::of(known)));
        Ok(Opened {
            handle,
            options,
            attributes,
            number,
        })
    }

    /// Opens a file whose cache the guest keeps whatever has become of it: it opened it when it
    /// knew that it may.
    pub fn open_late(&self, context: Context, inode: Inode, flags: u32) -> io::Result<Opened> {
        let (handle, options) = self.inner.open(context, inode, false, flags)?;
        Ok(Opened {
            handle,
            options: options | OpenOptions::KEEP_CACHE | OpenOptions::NOFLUSH,
            attributes: None,
            number: None,
        })
    }

    /// See [`CurrentVersions::read`].
    fn value_at(&self, port: u16) -> Option<u32> {
        let inode = self.versions().asked(port)?;
        let (present, _) = self
            .inner
            .getattr(lend::server_itself(), inode, None)
            .ok()?;
        let present = Version::of(&present);
        (self.versions()).answer(port, inode, present, (self.clock)())
    }

    /// What is remembered of files, for a saved state.
    pub fn saved(&self) -> Versions {
        self.versions().clone()
    }

    /// Remembers what was saved of the files that are the same still.
    pub fn restore(&self, saved: Versions, is_same: impl Fn(Inode) -> bool) {
        *self.versions() = saved.restored((self.clock)(), is_same);
    }

    /// Whether the guest may keep its cache of the file that it opens.
    fn may_keep(&self, inode: Inode, known: &Attr, is_local: impl FnOnce() -> bool) -> bool {
        let (version, now) = (Version::of(known), (self.clock)());
        known.mode & libc::S_IFMT == libc::S_IFREG
            && self.versions().may_keep(inode, version, now, is_local)
    }

    /// Whether the file's times are those of the kernel's clock, and closing it does nothing that
    /// the guest would have to hear of or to wait for (FLUSH). The guest sends one anyway if it has
    /// locked the file.
    fn is_local(&self, inode: Inode, handle: Option<Handle>) -> bool {
        let Some(handle) = handle else {
            return false;
        };
        lend::with_handle(&*self.inner, inode, handle, |file| {
            Ok(LOCAL_FILE_SYSTEMS.contains(&rustix::fs::fstatfs(file)?.f_type))
        })
        .unwrap_or(false)
    }

    /// Whether the file has set-user-ID or set-group-ID, as far as can be told.
    fn may_have_privileges(&self, inode: Inode, handle: Handle) -> bool {
        let mode = lend::with_handle(&*self.inner, inode, handle, |file| {
            Ok(rustix::fs::fstat(file)?.st_mode)
        });
        mode.map_or(true, |mode| mode & (libc::S_ISUID | libc::S_ISGID) != 0)
    }

    fn show(&self, mut entry: Entry) -> Entry {
        nodes::show(&self.inner, entry.inode, &mut entry.attr);
        entry
    }

    /// Removes the versions of inodes that the guest no longer references. After a FORGET the guest
    /// may still reference an inode by another name.
    fn remove_unreferenced(&self, context: Context, inodes: impl Iterator<Item = Inode>) {
        let mut versions = self.versions();
        for inode in inodes {
            if versions.contains(inode) && self.inner.getattr(context, inode, None).is_err() {
                versions.remove(inode);
            }
        }
    }
}

/// The versions of the files that the guest has cached, for any thread.
#[derive(Clone)]
pub struct CurrentVersions(CloseToOpen);

impl CurrentVersions {
    pub fn new(opens: &CloseToOpen) -> Self {
        Self(opens.clone())
    }

    /// What the guest reads from a port of [`super::numbers`]: the value of the port's number, if
    /// the answer to an open of that file would let the guest keep its cache. It takes as long as a
    /// local file system's attributes.
    pub fn read(&self, port: u16) -> u32 {
        self.0.value_at(port).unwrap_or(NO_VALUE)
    }
}

fn since_1970() -> Duration {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.unwrap_or_default()
}

/// Methods that call the inner file system's.
macro_rules! delegate {
    ($(fn $name:ident$(<$stream:ident: $bound:path>)?(
        &self $(, $argument:ident: $type:ty)* $(,)?
    ) $(-> $answer:ty)?;)*) => {
        $(fn $name$(<$stream: $bound>)?(&self $(, $argument: $type)*) $(-> $answer)? {
            self.inner.$name($($argument),*)
        })*
    };
}

impl FileSystem for CloseToOpen {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <Files as FileSystem>::DirIter;

    fn open(
        &self,
        context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let opened = self.open_with_attributes(context, inode, kill_priv, flags)?;
        Ok((opened.handle, opened.options))
    }

    /// The guest has cached nothing of a new file.
    fn create(
        &self,
        context: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        let made = (self.inner).create(
            context, parent, name, mode, kill_priv, flags, umask, extensions,
        );
        let (entry, handle, mut options) = made?;
        options.insert(OpenOptions::KEEP_CACHE);
        let mut made_in = self.made_in.lock().unwrap_or_else(PoisonError::into_inner);
        let is_local = match *made_in {
            Some((dir, is_local)) if dir == parent => is_local,
            _ => self.is_local(entry.inode, handle),
        };
        *made_in = Some((parent, is_local));
        options.set(OpenOptions::NOFLUSH, is_local);
        Ok((self.show(entry), handle, options))
    }

    fn lookup(&self, context: Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.inner
            .lookup(context, parent, name)
            .map(|entry| self.show(entry))
    }

    fn getattr(
        &self,
        context: Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(Attr, Duration)> {
        let (mut attributes, timeout) = self.inner.getattr(context, inode, handle)?;
        nodes::show(&self.inner, inode, &mut attributes);
        Ok((attributes, timeout))
    }

    /// The file that stands for a device node keeps its mark.
    fn setattr(
        &self,
        context: Context,
        inode: Inode,
        mut wanted: SetattrIn,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        if valid.contains(SetattrValid::MODE) {
            let (present, _) = self.inner.getattr(context, inode, handle)?;
            if Node::of(&self.inner, inode, present.mode, present.size).is_some() {
                wanted.mode = Node::mode_of_file(wanted.mode);
            }
        }
        let set = self.inner.setattr(context, inode, wanted, handle, valid);
        let (mut attributes, timeout) = set?;
        nodes::show(&self.inner, inode, &mut attributes);
        Ok((attributes, timeout))
    }

    fn mknod(
        &self,
        context: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let fs = &self.inner;
        let Some(node) = Node::wanted(mode, device) else {
            return fs.mknod(context, parent, name, mode, device, umask, extensions);
        };
        let mode = Node::mode_of_file(mode);
        let entry = fs.mknod(context, parent, name, mode, 0, umask, extensions)?;
        if let Err(error) = node.mark(fs, entry.inode) {
            fs.forget(context, entry.inode, 1);
            fs.unlink(context, parent, name)?;
            return Err(error);
        }
        Ok(self.show(entry))
    }

    fn link(
        &self,
        context: Context,
        inode: Inode,
        parent: Inode,
        name: &CStr,
    ) -> io::Result<Entry> {
        let linked = self.inner.link(context, inode, parent, name);
        linked.map(|entry| self.show(entry))
    }

    fn forget(&self, context: Context, inode: Inode, count: u64) {
        self.inner.forget(context, inode, count);
        self.remove_unreferenced(context, std::iter::once(inode));
    }

    fn batch_forget(&self, context: Context, requests: Vec<(Inode, u64)>) {
        let inodes: Vec<Inode> = requests.iter().map(|(inode, _)| *inode).collect();
        self.inner.batch_forget(context, requests);
        self.remove_unreferenced(context, inodes.into_iter());
    }

    /// A guest that mounts anew references no inode. `front.rs` serves locks.
    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.versions().clear();
        Ok(self.inner.init(capable)? | FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS)
    }

    /// virtiofsd takes a capability off its thread and back while it writes, so that the kernel
    /// clears set-user-ID and set-group-ID. Few files have them.
    fn write<R: ZeroCopyReader>(
        &self,
        context: Context,
        inode: Inode,
        handle: Handle,
        from: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let kill_priv = kill_priv && self.may_have_privileges(inode, handle);
        let fs = &self.inner;
        fs.write(
            context, inode, handle, from, size, offset, lock_owner, delayed, kill_priv, flags,
        )
    }

    fn destroy(&self) {
        self.versions().clear();
        self.inner.destroy();
    }

    plain_methods!(delegate, delegate);

    delegate! {
        fn unlink(&self, context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
        fn symlink(&self, context: Context, target: &CStr, parent: Inode, name: &CStr,
            extensions: Extensions) -> io::Result<Entry>;
        fn copyfilerange(&self, context: Context, from: Inode, from_handle: Handle, from_offset: u64,
            to: Inode, to_handle: Handle, to_offset: u64, length: u64, flags: u64)
            -> io::Result<usize>;
    }
}

#[cfg(test)]
mod tests;
