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
        let fs = serve(dir.path());
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

    /// Opens the file for reading; returns the number that the guest is told.
    fn number(&self) -> Option<Number> {
        let opened = (self.fs)
            .open_with_attributes(context(), self.inode, false, libc::O_RDONLY as u32)
            .unwrap();
        opened.number
    }

    fn is_unchanged(&self, number: Number) -> bool {
        self.fs.value_at(number.port) == Some(number.value)
    }

    fn is_remembered(&self) -> bool {
        self.fs.versions().contains(self.inode)
    }
}

fn serve(dir: &Path) -> CloseToOpen {
    let named = PassthroughFs::new(Config {
        root_dir: dir.to_str().unwrap().to_owned(),
        ..Config::default()
    })
    .unwrap();
    named.open_root_node().unwrap();
    let proc_self_fd = File::open("/proc/self/fd").unwrap();
    let nameless = Nameless::new(proc_self_fd, 10, xattrs::map().unwrap());
    CloseToOpen {
        clock: || since_1970() + Duration::from_secs(10),
        ..CloseToOpen::new(Arc::new(Files::new(named, nameless)))
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
    served.fs.clock = since_1970;
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
fn a_number_is_that_of_a_file_until_it_changes() {
    let served = Served::new();
    let number = served.number().unwrap();
    assert_eq!(served.number(), Some(number));
    assert!(served.is_unchanged(number) && served.is_unchanged(number));
    std::thread::sleep(Duration::from_millis(20));
    fs::write(served.file(), "TEXT").unwrap();
    assert!(!served.is_unchanged(number));
    let next = served.number().unwrap();
    assert!(served.is_unchanged(next) && !served.is_unchanged(number));
}

#[test]
fn each_change_that_an_open_sees_is_seen_by_who_asks() {
    let changes: [fn(&Path); 4] = [
        |file| fs::write(file, "longer").unwrap(),
        |file| set_mtime(file, SystemTime::now()),
        |file| fs::hard_link(file, file.with_extension("2")).unwrap(),
        |file| fs::remove_file(file).unwrap(),
    ];
    for change in changes {
        let served = Served::new();
        let number = served.number().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        change(&served.file());
        assert!(!served.is_unchanged(number));
    }
}

#[test]
fn a_number_is_answered_no_longer_than_the_pages_are_kept() {
    let mut served = Served::new();
    let number = served.number().unwrap();
    served.fs.clock = || since_1970() + Duration::from_secs(45);
    assert!(!served.is_unchanged(number));
}

#[test]
fn a_file_that_has_just_changed_has_no_number() {
    let mut served = Served::new();
    served.fs.clock = since_1970;
    assert_eq!(served.number(), None);
}

#[test]
fn a_late_open_does_not_tell_of_a_change() {
    let served = Served::new();
    let number = served.number().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::write(served.file(), "TEXT").unwrap();
    let late = (served.fs).open_late(context(), served.inode, libc::O_RDONLY as u32);
    assert_eq!(late.unwrap().number, None);
    assert!(!served.is_unchanged(number));
    assert!(!served.cache_is_kept(libc::O_RDONLY));
}

#[test]
fn a_number_ends_with_what_the_guest_knows_of_the_file() {
    let served = Served::new();
    let number = served.number().unwrap();
    served.fs.forget(context(), served.inode, 1);
    assert!(!served.is_unchanged(number));
    let served = Served::new();
    let number = served.number().unwrap();
    served.fs.init(FsOptions::empty()).unwrap();
    assert_eq!(served.fs.value_at(number.port), None);
}

#[test]
fn truncation_by_an_open_drops_the_pages() {
    let served = Served::new();
    assert!(!served.cache_is_kept(libc::O_RDONLY));
    assert!(!served.cache_is_kept(libc::O_WRONLY | libc::O_TRUNC));
    assert!(served.cache_is_kept(libc::O_RDONLY));
}

#[test]
fn a_file_of_a_local_file_system_is_closed_by_one_message() {
    let served = Served::new();
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        let flags = flags.cast_unsigned();
        let opened = served.fs.open(context(), served.inode, false, flags);
        let (_, options) = opened.unwrap();
        assert!(options.contains(OpenOptions::NOFLUSH));
    }
}

#[test]
fn a_file_that_closing_may_write_is_flushed_before() {
    // procfs stands for all that are not known to be local.
    let fs = serve(Path::new("/proc/sys/kernel"));
    let inode = fs.lookup(context(), ROOT_ID, c"hostname").unwrap().inode;
    for (flags, spared) in [(libc::O_RDONLY, true), (libc::O_RDWR, false)] {
        let opened = fs.open(context(), inode, false, flags.cast_unsigned());
        let (_, options) = opened.unwrap();
        assert_eq!(options.contains(OpenOptions::NOFLUSH), spared);
    }
    let opened = fs.open_with_attributes(context(), inode, false, libc::O_RDONLY as u32);
    assert_eq!(
        opened.unwrap().number,
        None,
        "its times may be another clock's"
    );
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

#[test]
fn a_name_is_removed_from_the_directory_that_the_guest_names() {
    let served = Served::new();
    let inodes = ["a", "b"].map(|name| {
        let dir = served.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        for name in ["1", "2"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let name = std::ffi::CString::new(name).unwrap();
        served.fs.lookup(context(), ROOT_ID, &name).unwrap().inode
    });
    let [a, b] = inodes;
    let unlink = |dir, name| {
        let done = served.fs.unlink(context(), dir, name);
        done.map_err(|error| error.raw_os_error().unwrap())
    };
    for (dir, name) in [(a, c"1"), (b, c"1"), (a, c"2")] {
        assert_eq!(unlink(dir, name), Ok(()));
        assert_eq!(unlink(dir, name), Err(libc::ENOENT));
    }
    assert!(served.dir.path().join("b/2").exists());
    assert_eq!(unlink(ROOT_ID, c"a"), Err(libc::EISDIR));
    assert_eq!(unlink(b, c"../file"), Err(libc::EINVAL));
    assert_eq!(unlink(b, c"2"), Ok(()));
    served.fs.forget(context(), b, 1);
    assert_eq!(unlink(b, c"2"), Err(libc::EBADF));
}
