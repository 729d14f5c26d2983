//! The guest's files: those with names, which are virtiofsd's, and those that it opened without
//! one, in one file system. The number of an inode says whose it is.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::AtFlags;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, CreateIn, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;

use super::lend::with_path;
use super::lost::Lost;
use super::nameless::Nameless;

pub type Inode = u64;
pub type Handle = u64;

pub struct Files {
    named: PassthroughFs,
    nameless: Nameless,
    lost: Lost,
    /// The directory in which a name was removed last. Most are not alone.
    last_dir: Mutex<Option<(Inode, File)>>,
}

impl Files {
    pub fn new(named: PassthroughFs, nameless: Nameless) -> Self {
        Self {
            named,
            nameless,
            lost: Lost::default(),
            last_dir: Mutex::default(),
        }
    }

    fn last_dir(&self) -> MutexGuard<'_, Option<(Inode, File)>> {
        self.last_dir.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest may know some of these inodes no longer.
    fn leave_dir(&self, is_forgotten: impl FnOnce(Inode) -> bool) {
        let mut last = self.last_dir();
        if last.as_ref().is_some_and(|(dir, _)| is_forgotten(*dir)) {
            *last = None;
        }
    }

    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    pub fn named(&self) -> &PassthroughFs {
        &self.named
    }

    pub fn nameless(&self) -> &Nameless {
        &self.nameless
    }

    /// /proc/self/fd
    pub fn proc_self_fd(&self) -> &File {
        self.nameless.proc_self_fd()
    }

    /// O_TMPFILE: makes a file in a directory's file system, without a name, and opens it.
    pub fn create_nameless(
        &self,
        context: Context,
        parent: Inode,
        request: &CreateIn,
    ) -> io::Result<(Entry, Handle)> {
        with_path(&self.named, parent, |dir| {
            self.nameless.create(context, dir, request)
        })
    }
}

/// An argument of a method of virtiofsd's.
trait Argument: Sized {
    fn checked(self) -> io::Result<Self> {
        Ok(self)
    }
}

impl Argument for Context {}
impl Argument for Extensions {}
impl Argument for bool {}
impl Argument for u32 {}
impl Argument for u64 {}

/// The name of an entry. virtiofsd takes for granted what Linux does: in a name with a slash it
/// would have the host walk a path, up the tree and along symbolic links.
impl Argument for &CStr {
    fn checked(self) -> io::Result<Self> {
        match self.to_bytes().contains(&b'/') {
            true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            false => Ok(self),
        }
    }
}

/// Methods that call virtiofsd's: they take a directory, or a file that has a name.
macro_rules! named {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)* $(,)?) $(-> $answer:ty)?;)*) => {
        $(fn $name(&self $(, $argument: $type)*) $(-> $answer)? {
            self.named.$name($($argument.checked()?),*)
        })*
    };
}

/// Methods that call those of the inode's file system.
macro_rules! either {
    ($(fn $name:ident$(<$stream:ident: $bound:path>)?(
        &self, $context:ident: Context, $inode:ident: Inode $(, $argument:ident: $type:ty)* $(,)?
    ) -> $answer:ty;)*) => {
        $(fn $name$(<$stream: $bound>)?(
            &self, $context: Context, $inode: Inode $(, $argument: $type)*
        ) -> $answer {
            if self.nameless.owns($inode) {
                self.nameless.$name($context, $inode $(, $argument)*)
            } else {
                self.named.$name($context, $inode $(, $argument)*)
            }
        })*
    };
}

/// Gives two macros the methods that no layer of the file system changes: those that take a
/// directory or a file with a name, and those for every file.
macro_rules! plain_methods {
    ($named:ident, $every:ident) => {
        $named! {
            fn mkdir(&self, context: Context, parent: Inode, name: &CStr, mode: u32, umask: u32,
                extensions: Extensions) -> io::Result<Entry>;
            fn readlink(&self, context: Context, inode: Inode) -> io::Result<Vec<u8>>;
            fn rename(&self, context: Context, from: Inode, old: &CStr, to: Inode, new: &CStr,
                flags: u32) -> io::Result<()>;
            fn rmdir(&self, context: Context, parent: Inode, name: &CStr) -> io::Result<()>;
            fn access(&self, context: Context, inode: Inode, mask: u32) -> io::Result<()>;
            fn opendir(&self, context: Context, inode: Inode, flags: u32)
                -> io::Result<(Option<Handle>, OpenOptions)>;
            fn readdir(&self, context: Context, inode: Inode, handle: Handle, size: u32,
                offset: u64) -> io::Result<Self::DirIter>;
            fn fsyncdir(&self, context: Context, inode: Inode, data_only: bool, handle: Handle)
                -> io::Result<()>;
            fn releasedir(&self, context: Context, inode: Inode, flags: u32, handle: Handle)
                -> io::Result<()>;
        }

        $every! {
            fn statfs(&self, context: Context, inode: Inode) -> io::Result<libc::statvfs64>;
            fn syncfs(&self, context: Context, inode: Inode) -> io::Result<()>;
            fn read<W: ZeroCopyWriter>(&self, context: Context, inode: Inode, handle: Handle, to: W,
                size: u32, offset: u64, lock_owner: Option<u64>, flags: u32) -> io::Result<usize>;
            fn fallocate(&self, context: Context, inode: Inode, handle: Handle, mode: u32,
                offset: u64, length: u64) -> io::Result<()>;
            fn lseek(&self, context: Context, inode: Inode, handle: Handle, offset: u64,
                whence: u32) -> io::Result<u64>;
            fn flush(&self, context: Context, inode: Inode, handle: Handle, lock_owner: u64)
                -> io::Result<()>;
            fn fsync(&self, context: Context, inode: Inode, data_only: bool, handle: Handle)
                -> io::Result<()>;
            fn release(&self, context: Context, inode: Inode, flags: u32, handle: Handle,
                flush: bool, unlock: bool, lock_owner: Option<u64>) -> io::Result<()>;
            fn getxattr(&self, context: Context, inode: Inode, name: &CStr, size: u32)
                -> io::Result<GetxattrReply>;
            fn listxattr(&self, context: Context, inode: Inode, size: u32)
                -> io::Result<ListxattrReply>;
            fn setxattr(&self, context: Context, inode: Inode, name: &CStr, value: &[u8],
                flags: u32, more_flags: SetxattrFlags) -> io::Result<()>;
            fn removexattr(&self, context: Context, inode: Inode, name: &CStr) -> io::Result<()>;
        }
    };
}
pub(super) use plain_methods;

impl FileSystem for Files {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.leave_dir(|_| true);
        self.nameless.clear();
        self.lost.set(BTreeMap::new());
        self.named.init(capable)
    }

    fn destroy(&self) {
        self.leave_dir(|_| true);
        self.nameless.clear();
        self.lost.set(BTreeMap::new());
        self.named.destroy();
    }

    fn forget(&self, context: Context, inode: Inode, count: u64) {
        self.lost.forget(inode, count);
        self.leave_dir(|dir| dir == inode);
        if self.nameless.owns(inode) {
            self.nameless.forget(context, inode, count);
        } else {
            self.named.forget(context, inode, count);
        }
    }

    fn batch_forget(&self, context: Context, requests: Vec<(Inode, u64)>) {
        for (inode, count) in &requests {
            self.lost.forget(*inode, *count);
        }
        self.leave_dir(|dir| requests.iter().any(|(inode, _)| *inode == dir));
        let (nameless, named) =
            (requests.into_iter()).partition(|(inode, _)| self.nameless.owns(*inode));
        self.nameless.batch_forget(context, nameless);
        self.named.batch_forget(context, named);
    }

    /// A file that gets a name is from then on known by another inode, too.
    fn link(
        &self,
        context: Context,
        inode: Inode,
        parent: Inode,
        name: &CStr,
    ) -> io::Result<Entry> {
        let name = name.checked()?;
        if !self.nameless.owns(inode) {
            return self.named.link(context, inode, parent, name);
        }
        with_path(&self.named, parent, |dir| {
            self.nameless.give_name(inode, dir, name)
        })?;
        self.named.lookup(context, parent, name)
    }

    /// As virtiofsd does it, but for the look at what has the name, which it takes to tell another
    /// server where its files are. Here that is found out when a state is saved.
    fn unlink(&self, _context: Context, parent: Inode, name: &CStr) -> io::Result<()> {
        let name = name.checked()?;
        let mut last = self.last_dir();
        let dir = match last.take().filter(|(inode, _)| *inode == parent) {
            Some((_, dir)) => dir,
            None => with_path(&self.named, parent, File::try_clone)?,
        };
        let (_, dir) = last.insert((parent, dir));
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn symlink(
        &self,
        context: Context,
        target: &CStr,
        parent: Inode,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let name = name.checked()?;
        self.named
            .symlink(context, target, parent, name, extensions)
    }

    /// The guest copies between a file with a name and one without by itself.
    fn copyfilerange(
        &self,
        context: Context,
        from: Inode,
        from_handle: Handle,
        from_offset: u64,
        to: Inode,
        to_handle: Handle,
        to_offset: u64,
        length: u64,
        flags: u64,
    ) -> io::Result<usize> {
        if self.nameless.owns(from) || self.nameless.owns(to) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let fs = &self.named;
        fs.copyfilerange(
            context,
            from,
            from_handle,
            from_offset,
            to,
            to_handle,
            to_offset,
            length,
            flags,
        )
    }

    plain_methods!(named, either);

    named! {
        fn lookup(&self, context: Context, parent: Inode, name: &CStr) -> io::Result<Entry>;
        fn mknod(&self, context: Context, parent: Inode, name: &CStr, mode: u32, device: u32,
            umask: u32, extensions: Extensions) -> io::Result<Entry>;
        fn create(&self, context: Context, parent: Inode, name: &CStr, mode: u32,
            kill_priv: bool, flags: u32, umask: u32, extensions: Extensions)
            -> io::Result<(Entry, Option<Handle>, OpenOptions)>;
    }

    either! {
        fn getattr(&self, context: Context, inode: Inode, handle: Option<Handle>)
            -> io::Result<(Attr, Duration)>;
        fn setattr(&self, context: Context, inode: Inode, attributes: SetattrIn,
            handle: Option<Handle>, valid: SetattrValid) -> io::Result<(Attr, Duration)>;
        fn open(&self, context: Context, inode: Inode, kill_priv: bool, flags: u32)
            -> io::Result<(Option<Handle>, OpenOptions)>;
        fn write<R: ZeroCopyReader>(&self, context: Context, inode: Inode, handle: Handle,
            from: R, size: u32, offset: u64, lock_owner: Option<u64>, delayed: bool,
            kill_priv: bool, flags: u32) -> io::Result<usize>;
    }
}
