//! The file system that the device serves: virtiofsd's, with close-to-open consistency that does
//! not drop the guest's page cache at every open.
//!
//! virtiofsd answers opens in one of two ways. Without KEEP_CACHE the guest's kernel drops the
//! file's pages, even those that running programs have mapped, and reads them again: each exec of a
//! shell slows down the shells that run. With KEEP_CACHE the guest never sees a change that shows
//! in neither mtime nor size. Here the answer depends on the file, as with libfuse's `auto_cache`;
//! `versions.rs` decides.

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
use super::nodes::{self, Node};
use super::versions::{Version, Versions};

pub struct CloseToOpen {
    inner: Arc<Files>,
    versions: Mutex<Versions>,
    /// Seconds since 1970.
    clock: fn() -> u64,
}

impl CloseToOpen {
    /// Serves `inner`, whose own choice of KEEP_CACHE is ignored.
    pub fn new(inner: Arc<Files>) -> Self {
        Self {
            inner,
            versions: Mutex::default(),
            clock: seconds_since_1970,
        }
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest may keep its cache of the file at this open. It may not if the attributes
    /// cannot be read.
    fn may_keep(&self, context: Context, inode: Inode, handle: Option<Handle>) -> bool {
        let Ok((attributes, _)) = self.inner.getattr(context, inode, handle) else {
            return false;
        };
        attributes.mode & libc::S_IFMT == libc::S_IFREG
            && (self.versions()).may_keep(inode, Version::of(&attributes), (self.clock)())
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

fn seconds_since_1970() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_secs())
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

    /// The version is read after the file was opened, so that what the guest reads is not older.
    fn open(
        &self,
        context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        let (handle, mut options) = self.inner.open(context, inode, kill_priv, flags)?;
        options.set(
            OpenOptions::KEEP_CACHE,
            self.may_keep(context, inode, handle),
        );
        // What was only read needs no FLUSH, nor does a lock on it: RELEASE releases that.
        let reads = flags.cast_signed() & libc::O_ACCMODE == libc::O_RDONLY;
        options.set(OpenOptions::NOFLUSH, reads);
        Ok((handle, options))
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
        *self.versions() = Versions::default();
        Ok(self.inner.init(capable)? | FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS)
    }

    fn destroy(&self) {
        *self.versions() = Versions::default();
        self.inner.destroy();
    }

    plain_methods!(delegate, delegate);

    delegate! {
        fn copyfilerange(&self, context: Context, from: Inode, from_handle: Handle, from_offset: u64,
            to: Inode, to_handle: Handle, to_offset: u64, length: u64, flags: u64)
            -> io::Result<usize>;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::path::Path;

    use virtiofsd::filesystem::ROOT_ID;
    use virtiofsd::passthrough::{Config, PassthroughFs};

    use super::super::nameless::Nameless;
    use super::super::xattrs;
    use super::*;

    /// A directory with one file, served with a clock that is ten seconds ahead, so that every
    /// change of the test is old.
    struct Served {
        fs: CloseToOpen,
        dir: tempfile::TempDir,
        inode: Inode,
    }

    fn context() -> Context {
        Context {
            uid: 0.into(),
            gid: 0.into(),
            pid: 1,
        }
    }

    impl Served {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("file"), "text").unwrap();
            let named = PassthroughFs::new(Config {
                root_dir: dir.path().to_str().unwrap().to_owned(),
                ..Config::default()
            })
            .unwrap();
            named.open_root_node().unwrap();
            let proc_self_fd = File::open("/proc/self/fd").unwrap();
            let nameless = Nameless::new(proc_self_fd, 10, xattrs::map().unwrap());
            let inner = Files::new(named, nameless);
            let fs = CloseToOpen {
                clock: || seconds_since_1970() + 10,
                ..CloseToOpen::new(Arc::new(inner))
            };
            let inode = fs.lookup(context(), ROOT_ID, c"file").unwrap().inode;
            Self { fs, dir, inode }
        }

        fn file(&self) -> std::path::PathBuf {
            self.dir.path().join("file")
        }

        fn cache_is_kept(&self, flags: libc::c_int) -> bool {
            let opened = self
                .fs
                .open(context(), self.inode, false, flags.cast_unsigned());
            let (handle, options) = opened.unwrap();
            let (inode, handle) = (self.inode, handle.unwrap());
            self.fs
                .release(context(), inode, 0, handle, false, false, None)
                .unwrap();
            options.contains(OpenOptions::KEEP_CACHE)
        }

        fn is_remembered(&self) -> bool {
            self.fs.versions().contains(self.inode)
        }
    }

    fn set_mtime(path: &Path, mtime: SystemTime) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(FileTimes::new().set_modified(mtime))
            .unwrap();
    }

    #[test]
    fn an_unchanged_file_keeps_its_pages_from_the_second_open_on() {
        let served = Served::new();
        let kept: Vec<bool> = (0..3)
            .map(|_| served.cache_is_kept(libc::O_RDONLY))
            .collect();
        assert_eq!(kept, [false, true, true]);
    }

    #[test]
    fn a_file_that_has_just_changed_never_keeps_its_pages() {
        let mut served = Served::new();
        served.fs.clock = seconds_since_1970;
        assert!((0..3).all(|_| !served.cache_is_kept(libc::O_RDONLY)));
        assert!(!served.is_remembered());
    }

    #[test]
    fn a_change_that_leaves_length_and_mtime_drops_the_pages() {
        let served = Served::new();
        let mtime = fs::metadata(served.file()).unwrap().modified().unwrap();
        assert!(!served.cache_is_kept(libc::O_RDONLY));
        assert!(served.cache_is_kept(libc::O_RDONLY));
        // Longer than the granularity of the kernel's file times.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(served.file(), "TEXT").unwrap();
        set_mtime(&served.file(), mtime);
        assert!(!served.cache_is_kept(libc::O_RDONLY));
    }

    #[test]
    fn truncation_by_an_open_drops_the_pages() {
        let served = Served::new();
        assert!(!served.cache_is_kept(libc::O_RDONLY));
        assert!(!served.cache_is_kept(libc::O_WRONLY | libc::O_TRUNC));
        assert!(served.cache_is_kept(libc::O_RDONLY));
    }

    #[test]
    fn a_file_that_is_only_read_is_closed_by_one_message() {
        let served = Served::new();
        for (flags, spared) in [
            (libc::O_RDONLY, true),
            (libc::O_WRONLY, false),
            (libc::O_RDWR, false),
        ] {
            let flags = flags.cast_unsigned();
            let opened = served.fs.open(context(), served.inode, false, flags);
            let (_, options) = opened.unwrap();
            assert_eq!(options.contains(OpenOptions::NOFLUSH), spared);
        }
    }

    #[test]
    fn a_directory_is_not_remembered() {
        let mut served = Served::new();
        served.inode = ROOT_ID;
        assert!((0..2).all(|_| !served.cache_is_kept(libc::O_DIRECTORY)));
        assert!(!served.is_remembered());
    }

    #[test]
    fn a_version_is_removed_with_the_last_name_that_the_guest_forgets() {
        let served = Served::new();
        served.fs.lookup(context(), ROOT_ID, c"file").unwrap();
        served.cache_is_kept(libc::O_RDONLY);
        served.fs.forget(context(), served.inode, 1);
        assert!(served.cache_is_kept(libc::O_RDONLY));
        served.fs.batch_forget(context(), vec![(served.inode, 1)]);
        assert!(!served.is_remembered());
    }

    #[test]
    fn a_guest_that_mounts_anew_starts_without_versions() {
        let served = Served::new();
        served.cache_is_kept(libc::O_RDONLY);
        assert!(served.is_remembered());
        served.fs.init(FsOptions::empty()).unwrap();
        assert!(!served.is_remembered());
    }
}
