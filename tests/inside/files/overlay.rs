//! Claims about an overlay whose layers are directories of the file system.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, linkat, makedev, mknodat, setxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{chmod, file, mode, text};

/// A mounted overlay.
struct Overlay<'a>(&'a Path);

impl<'a> Overlay<'a> {
    /// With the layers in `lower`, from the top, and a writable one, if there is to be one.
    fn mount(at: &'a Path, lower: &[&str], upper: Option<&str>) -> Self {
        let dir = at.parent().unwrap();
        let path = |name: &&str| dir.join(name).display().to_string();
        let lower: Vec<String> = lower.iter().map(path).collect();
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some(upper) = upper {
            let [upper, work] = [path(&upper), path(&"work")];
            options += &format!(",upperdir={upper},workdir={work}");
        }
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", at, "overlay", MountFlags::empty(), &*options).unwrap();
        Self(at)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| name(entry.unwrap())).collect()
}

fn directories(dir: &Path) {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    // On a host whose file system has no such attributes none can be made of the trusted ones.
    setxattr(dir, "user.a", b"", XattrFlags::empty()).unwrap();
}

/// What is removed and replaced above is gone, also when the layer is a lower one later.
pub fn whiteouts(dir: &Path) {
    directories(dir);
    let (lower, merged) = (dir.join("lower"), dir.join("merged"));
    for name in ["removed", "moved", "kept"] {
        file(&lower, name, name);
    }
    fs::create_dir(lower.join("replaced")).unwrap();
    file(&lower, "replaced/old", "");
    let overlay = Overlay::mount(&merged, &["lower"], Some("upper"));
    fs::remove_file(merged.join("removed")).unwrap();
    fs::rename(merged.join("moved"), merged.join("to")).unwrap();
    fs::remove_dir_all(merged.join("replaced")).unwrap();
    fs::create_dir(merged.join("replaced")).unwrap();
    file(&merged, "replaced/new", "");
    let check = || {
        let expected = ["kept", "replaced", "to"].map(str::to_owned);
        assert_eq!(names(&merged), expected.into());
        assert_eq!(names(&merged.join("replaced")), ["new".to_owned()].into());
        assert_eq!(text(&merged.join("to")), "moved");
    };
    check();
    drop(overlay);
    for name in ["removed", "moved"] {
        let whiteout = fs::symlink_metadata(dir.join("upper").join(name)).unwrap();
        assert!(whiteout.file_type().is_char_device(), "{name}");
        assert_eq!(whiteout.rdev(), 0, "{name}");
    }
    let _overlay = Overlay::mount(&merged, &["upper", "lower"], None);
    check();
}

/// A file of every kind is itself when it was changed above.
pub fn copies_up(dir: &Path) {
    directories(dir);
    let (lower, merged) = (dir.join("lower"), dir.join("merged"));
    let (path, plain) = file(&lower, "file", "text");
    chmod(&path, 0o644);
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    plain.set_modified(time).unwrap();
    setxattr(&path, "user.b", b"value", XattrFlags::empty()).unwrap();
    linkat(
        CWD,
        &path,
        CWD,
        lower.join("linked"),
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    symlink("file", lower.join("link")).unwrap();
    let some = Mode::from_raw_mode(0o640);
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("node", FileType::CharacterDevice, makedev(1, 3)),
    ] {
        mknodat(CWD, lower.join(name), kind, some, device).unwrap();
    }
    let overlay = Overlay::mount(&merged, &["lower"], Some("upper"));
    for name in ["file", "link", "fifo", "node"] {
        lchown(merged.join(name), Some(7), Some(8)).unwrap();
    }
    chmod(&merged.join("file"), 0o4711);
    let check = || {
        for (name, kind) in [
            ("file", libc::S_IFREG | 0o4711),
            ("link", libc::S_IFLNK | 0o777),
            ("fifo", libc::S_IFIFO | 0o640),
            ("node", libc::S_IFCHR | 0o640),
        ] {
            let found = fs::symlink_metadata(merged.join(name)).unwrap();
            let seen = (found.mode(), found.uid(), found.gid());
            assert_eq!(seen, (kind, 7, 8), "{name}");
        }
        let above = merged.join("file");
        assert_eq!(text(&above), "text");
        assert_eq!(fs::metadata(&above).unwrap().modified().unwrap(), time);
        let mut value = [0; 8];
        assert_eq!(getxattr(&above, "user.b", &mut value).unwrap(), 5);
        let node = fs::symlink_metadata(merged.join("node")).unwrap();
        assert_eq!(node.rdev(), makedev(1, 3));
        assert_eq!(fs::read(merged.join("node")).unwrap(), b"");
        assert_eq!(mode(&path) & 0o7777, 0o644, "below");
    };
    check();
    drop(overlay);
    let _overlay = Overlay::mount(&merged, &["lower"], Some("upper"));
    check();
    chown(merged.join("linked"), Some(9), None).unwrap();
    assert_eq!(fs::metadata(lower.join("linked")).unwrap().uid(), 0);
}
