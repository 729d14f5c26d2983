//! What is done with a file that is opened while its content is cached. The guest's kernel opens it
//! without asking the host, and has to ask when there is need of more than the cache.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{
    Advice, FlockOperation, SeekFrom, copy_file_range, fadvise, fcntl_lock, flock, ioctl_getflags,
    seek,
};
use rustix::io::Errno;

use super::{file, text};

/// How long ago a file's last change is when its content may be cached beyond an open.
const SETTLED: Duration = Duration::from_millis(300);

/// Makes a file of which the cache has everything, and opens it for reading.
fn cached(dir: &Path, name: &str, content: &str) -> File {
    let (path, _) = file(dir, name, content);
    std::thread::sleep(SETTLED);
    for _ in 0..2 {
        assert_eq!(text(&path), content);
    }
    File::open(path).unwrap()
}

fn drop_pages(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

pub fn is_read(dir: &Path) {
    let mut opened = cached(dir, "f", "content");
    let mut content = String::new();
    opened.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    drop_pages(&opened);
    let mut part = [0; 4];
    opened.read_exact_at(&mut part, 3).unwrap();
    assert_eq!(&part, b"tent");
    drop_pages(&opened);
    assert_eq!(text(&dir.join("f")), "content");
}

pub fn outlives_its_name(dir: &Path) {
    let opened = cached(dir, "f", "content");
    fs::remove_file(dir.join("f")).unwrap();
    fs::write(dir.join("f"), "newcomer").unwrap();
    drop_pages(&opened);
    let mut part = [0; 7];
    opened.read_exact_at(&mut part, 0).unwrap();
    assert_eq!(&part, b"content");
    assert_eq!(opened.metadata().unwrap().nlink(), 0);
}

pub fn is_locked(dir: &Path) {
    let opened = cached(dir, "f", "content");
    let other = File::open(dir.join("f")).unwrap();
    flock(&opened, FlockOperation::LockExclusive).unwrap();
    let shared = FlockOperation::NonBlockingLockShared;
    assert_eq!(flock(&other, shared), Err(Errno::AGAIN));
    drop(opened);
    flock(&other, shared).unwrap();
    fcntl_lock(&other, shared).unwrap();
}

pub fn does_the_rest(dir: &Path) {
    let opened = cached(dir, "f", "content");
    opened.sync_all().unwrap();
    let opened = cached(dir, "g", "content");
    assert_eq!(seek(&opened, SeekFrom::Hole(0)), Ok(7));
    let opened = cached(dir, "h", "content");
    let (path, to) = file(dir, "copy", "");
    let copied = copy_file_range(&opened, Some(&mut 3), &to, Some(&mut 0), 100);
    assert_eq!((copied, text(&path)), (Ok(4), "tent".to_owned()));
    let opened = cached(dir, "i", "content");
    opened
        .set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    assert_eq!(opened.metadata().unwrap().mode() & 0o7777, 0o600);
    let opened = cached(dir, "j", "content");
    assert!(matches!(ioctl_getflags(&opened), Ok(_) | Err(Errno::NOTTY)));
}

/// Four threads ask at once.
pub fn is_read_by_many(dir: &Path) {
    for number in 0..20 {
        let opened = cached(dir, &format!("f{number}"), "content");
        drop_pages(&opened);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut part = [0; 7];
                    opened.read_exact_at(&mut part, 0).unwrap();
                    assert_eq!(&part, b"content");
                });
            }
        });
    }
}
