//! Claims about the files of a directory, each tried by itself:
//!   rvm-inside files DIR      prints `ok NAME`, or `failed NAME: why`, for each claim
//!   rvm-inside user OP PATH   does one thing, as whoever called it made it, and prints the error

pub mod cached;
pub mod overlay;
pub mod rights;

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, IFlags, Mode, OFlags, RenameFlags,
    SeekFrom, StatxFlags, XattrFlags, copy_file_range, fallocate, fchown, fcntl_lock, flock,
    getxattr, ioctl_getflags, ioctl_setflags, linkat, makedev, mknodat, open, renameat_with, seek,
    setxattr, statvfs, statx,
};
use rustix::io::Errno;

/// A user without rights.
const USER: u32 = 1000;

type Claim = (&'static str, fn(&Path));

/// The claims. A name says what holds.
const CLAIMS: &[Claim] = &[
    ("times have nanoseconds", times),
    ("files have a time of birth", birth),
    ("changes by a descriptor follow a rename", after_rename),
    ("changes by a descriptor follow an unlink", after_unlink),
    ("appends by two open files are all kept", appends),
    ("renameat2 keeps, exchanges and leaves a whiteout", renames),
    ("fallocate keeps a size, zeroes and makes holes", allocation),
    ("holes and data are found", holes),
    ("copy_file_range copies", copies),
    ("a device node is the device, and stays it", devices),
    ("FIFOs and sockets are made", fifos),
    (
        "attributes of user, trusted and security are kept",
        attributes,
    ),
    ("an ACL lets a user in", rights::acl),
    ("a default ACL is inherited", rights::default_acl),
    ("flags of files are set", flags),
    ("links are counted", links),
    ("a sticky directory protects its files", rights::sticky),
    (
        "a directory with setgid gives its group away",
        rights::setgid,
    ),
    (
        "a write of another clears setuid and capabilities",
        rights::privileges,
    ),
    ("file capabilities work for a user", rights::capabilities),
    ("a running program is not written to", text_busy),
    ("a directory is read while its files are removed", directory),
    ("names and targets have their lengths", lengths),
    ("opens are refused as they should be", opens),
    ("the size of the file system is known", size),
    ("flock excludes another open file", whole_locks),
    (
        "a lock of a process ends when it closes the file",
        process_locks,
    ),
    ("a name is given once", existing_names),
    ("a file with no name can be written", nameless),
    ("a file with no name can be given one", named_later),
    (
        "an overlay's upper directory hides what is below",
        overlay::whiteouts,
    ),
    ("an overlay copies files of every kind", overlay::copies_up),
    ("a cached file is read", cached::is_read),
    ("a cached file outlives its name", cached::outlives_its_name),
    ("a cached file is locked", cached::is_locked),
    ("a cached file is read by many", cached::is_read_by_many),
    (
        "a cached file is synced, searched, copied and changed",
        cached::does_the_rest,
    ),
];

/// Tries every claim in a directory of its own.
pub fn run(dir: &str) {
    std::panic::set_hook(Box::new(|_| {}));
    rustix::process::umask(Mode::empty());
    for (number, (name, claim)) in CLAIMS.iter().enumerate() {
        let dir = Path::new(dir).join(number.to_string());
        fs::create_dir(&dir).unwrap();
        match std::panic::catch_unwind(|| claim(&dir)) {
            Ok(()) => println!("ok {name}"),
            Err(why) => {
                let text = why.downcast_ref::<String>().cloned();
                let text = text.or_else(|| Some((*why.downcast_ref::<&str>()?).to_owned()));
                let text = text.unwrap_or_default().replace('\n', " ");
                println!("failed {name}: {text}");
            }
        }
    }
}

/// Does what [`as_user`] asks for.
pub fn act(operation: &str, path: &str) {
    let result = match operation {
        "read" => fs::read(path).map(drop),
        "create" => File::create_new(path).map(drop),
        "unlink" => fs::remove_file(path),
        "mkdir" => fs::create_dir(path),
        "lock" => OpenOptions::new().write(true).open(path).and_then(|file| {
            let exclusive = FlockOperation::NonBlockingLockExclusive;
            Ok(fcntl_lock(&file, exclusive)?)
        }),
        "write" => OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(b"x")),
        other => panic!("what is {other}?"),
    };
    match result {
        Ok(()) => print!("ok"),
        Err(error) => print!("{}", error.raw_os_error().unwrap()),
    }
}

/// Does something as [`USER`]; returns `ok` or the number of the error.
fn as_user(operation: &str, path: &Path) -> String {
    let mut command = Command::new("/proc/self/exe");
    command.args(["user", operation]).arg(path);
    let output = command.uid(USER).gid(USER).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn file(dir: &Path, name: &str, text: &str) -> (PathBuf, File) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    (path, file)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn times(dir: &Path) {
    let (path, file) = file(dir, "f", "");
    let time = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let times = FileTimes::new().set_accessed(time).set_modified(time);
    file.set_times(times).unwrap();
    let found = fs::metadata(path).unwrap();
    assert_eq!(found.modified().unwrap(), time);
    assert_eq!(found.accessed().unwrap(), time);
}

fn birth(dir: &Path) {
    let (path, _file) = file(dir, "f", "");
    for path in [dir, &path] {
        let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BTIME).unwrap();
        assert!(found.stx_mask & StatxFlags::BTIME.bits() != 0);
        assert!(found.stx_btime.tv_sec > 0);
    }
}

/// Changes a file by its descriptor.
fn change(file: &File) {
    file.set_len(2).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o604))
        .unwrap();
    let ids = [USER, USER + 1];
    fchown(
        file,
        Some(rustix::fs::Uid::from_raw(ids[0])),
        Some(rustix::fs::Gid::from_raw(ids[1])),
    )
    .unwrap();
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    rustix::fs::fsetxattr(file, "user.a", b"value", XattrFlags::empty()).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.len(), found.mode() & 0o7777), (2, 0o604));
    assert_eq!([found.uid(), found.gid()], ids);
    assert_eq!(found.modified().unwrap(), time);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::fgetxattr(file, "user.a", &mut value), Ok(5));
}

fn after_rename(dir: &Path) {
    let (path, file) = file(dir, "f", "first");
    fs::rename(&path, dir.join("g")).unwrap();
    fs::write(&path, "newcomer").unwrap();
    change(&file);
    assert_eq!(text(&path), "newcomer");
    let newcomer = fs::metadata(&path).unwrap();
    assert_eq!((newcomer.uid(), newcomer.mode() & 0o7777), (0, 0o666));
    assert_eq!(text(&dir.join("g")), "fi");
}

fn after_unlink(dir: &Path) {
    let (path, file) = file(dir, "f", "first");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "newcomer").unwrap();
    change(&file);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(text(&path), "newcomer");
}

fn appends(dir: &Path) {
    let path = dir.join("log");
    let open = || OpenOptions::new().append(true).create(true).open(&path);
    let mut files = [open().unwrap(), open().unwrap()];
    for number in 0..100 {
        writeln!(files[number % 2], "{number:3}").unwrap();
    }
    let expected: String = (0..100).map(|number| format!("{number:3}\n")).collect();
    assert_eq!(text(&path), expected);
}

fn renames(dir: &Path) {
    let [a, b] = ["a", "b"].map(|name| file(dir, name, name).0);
    let rename = |flags| renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!((text(&a), text(&b)), ("b".to_owned(), "a".to_owned()));
    rename(RenameFlags::WHITEOUT).unwrap();
    assert_eq!(text(&b), "b");
    let whiteout = fs::symlink_metadata(&a).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
}

fn allocation(dir: &Path) {
    let (_, file) = file(dir, "f", &"x".repeat(16384));
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 65536).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 16384);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 4096, 4096).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, 8192, 4096).unwrap();
    let mut bytes = vec![1; 16384];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == b'x'));
    assert!(bytes[4096..12288].iter().all(|byte| *byte == 0));
    assert!(bytes[12288..].iter().all(|byte| *byte == b'x'));
    fallocate(&file, FallocateFlags::empty(), 0, 32768).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 32768);
}

fn holes(dir: &Path) {
    let (_, file) = file(dir, "f", "");
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"data", 512 << 10).unwrap();
    file.sync_all().unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(512 << 10));
    let hole = seek(&file, SeekFrom::Hole(512 << 10)).unwrap();
    assert!(hole > 512 << 10 && hole < 1 << 20);
    assert_eq!(seek(&file, SeekFrom::Data(hole)), Err(Errno::NXIO));
}

fn copies(dir: &Path) {
    let (_, from) = file(dir, "from", "some text");
    let (path, to) = file(dir, "to", "");
    let (mut at, mut target) = (5, 0);
    let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut target), 100);
    assert_eq!(copied, Ok(4));
    assert_eq!(text(&path), "text");
}

fn devices(dir: &Path) {
    let path = dir.join("null");
    let wanted = Mode::from_raw_mode(0o666);
    mknodat(CWD, &path, FileType::CharacterDevice, wanted, makedev(1, 3)).unwrap();
    let moved = dir.join("moved");
    fs::rename(&path, &moved).unwrap();
    chmod(&moved, 0o600);
    chmod(&moved, 0o644);
    let found = fs::metadata(&moved).unwrap();
    assert!(found.file_type().is_char_device());
    assert_eq!(
        (found.rdev(), found.mode() & 0o7777),
        (makedev(1, 3), 0o644)
    );
    let mut device = File::options().read(true).write(true).open(&moved).unwrap();
    device.write_all(b"gone").unwrap();
    assert_eq!(device.read(&mut [0; 8]).unwrap(), 0);
    let disk = dir.join("disk");
    mknodat(CWD, &disk, FileType::BlockDevice, wanted, makedev(7, 0)).unwrap();
    assert!(fs::metadata(&disk).unwrap().file_type().is_block_device());
}

fn fifos(dir: &Path) {
    let wanted = Mode::from_raw_mode(0o640);
    let path = dir.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, wanted, 0).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    let mut both = File::options().read(true).write(true).open(&path).unwrap();
    both.write_all(b"text").unwrap();
    let mut bytes = [0; 4];
    both.read_exact(&mut bytes).unwrap();
    let socket = dir.join("socket");
    mknodat(CWD, &socket, FileType::Socket, wanted, 0).unwrap();
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
}

fn attributes(dir: &Path) {
    let (path, _file) = file(dir, "f", "");
    for name in ["user.a", "trusted.b", "security.c"] {
        setxattr(&path, name, b"value", XattrFlags::CREATE).unwrap();
        let again = setxattr(&path, name, b"value", XattrFlags::CREATE);
        assert_eq!(again, Err(Errno::EXIST), "{name}");
        let mut value = [0; 8];
        assert_eq!(getxattr(&path, name, &mut value), Ok(5), "{name}");
        let mut names = [0; 256];
        let length = rustix::fs::listxattr(&path, &mut names).unwrap();
        let listed = names[..length].split(|byte| *byte == 0);
        assert!(listed.into_iter().any(|listed| listed == name.as_bytes()));
        rustix::fs::removexattr(&path, name).unwrap();
        assert_eq!(getxattr(&path, name, &mut value), Err(Errno::NODATA));
    }
}

fn flags(dir: &Path) {
    let (_, file) = file(dir, "f", "");
    let before = ioctl_getflags(&file).unwrap();
    ioctl_setflags(&file, before | IFlags::NODUMP).unwrap();
    assert_eq!(ioctl_getflags(&file), Ok(before | IFlags::NODUMP));
}

fn links(dir: &Path) {
    let (path, file) = file(dir, "f", "text");
    let other = dir.join("g");
    fs::hard_link(&path, &other).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    fs::remove_file(&other).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let before = fs::metadata(dir).unwrap().nlink();
    fs::create_dir(dir.join("d")).unwrap();
    assert_eq!(fs::metadata(dir).unwrap().nlink(), before + 1);
}

fn text_busy(dir: &Path) {
    let path = dir.join("program");
    fs::copy("/proc/self/exe", &path).unwrap();
    chmod(&path, 0o755);
    let mut command = Command::new(&path);
    command.args(["pause", "-"]);
    command.stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let written = OpenOptions::new().write(true).open(&path);
    drop(child.stdin.take());
    child.wait().unwrap();
    let error = written.unwrap_err().raw_os_error();
    assert_eq!(error, Some(Errno::TXTBSY.raw_os_error()));
}

fn directory(dir: &Path) {
    for number in 0..1000 {
        File::create(dir.join(format!("file-{number}"))).unwrap();
    }
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.file_type().unwrap().is_file());
        fs::remove_file(entry.path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 1000);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

fn lengths(dir: &Path) {
    let longest = dir.join("n".repeat(255));
    File::create(&longest).unwrap();
    let longer = File::create(dir.join("n".repeat(256))).unwrap_err();
    let too_long = Some(Errno::NAMETOOLONG.raw_os_error());
    assert_eq!(longer.raw_os_error(), too_long);
    let target = "t".repeat(4000);
    let link = dir.join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&target));
    let (_, file) = file(dir, "f", "");
    file.write_all_at(b"far", 5 << 30).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (5 << 30) + 3);
}

fn opens(dir: &Path) {
    let (path, _file) = file(dir, "f", "");
    let link = dir.join("link");
    std::os::unix::fs::symlink("f", &link).unwrap();
    for (path, flags, error) in [
        (&path, OFlags::CREATE | OFlags::EXCL, Errno::EXIST),
        (&path, OFlags::DIRECTORY, Errno::NOTDIR),
        (&link, OFlags::NOFOLLOW, Errno::LOOP),
        (&dir.join("none"), OFlags::empty(), Errno::NOENT),
        (&dir.to_owned(), OFlags::WRONLY, Errno::ISDIR),
        (&path.join("below"), OFlags::empty(), Errno::NOTDIR),
    ] {
        let opened = open(path, flags, Mode::empty());
        assert_eq!(opened.unwrap_err(), error, "{}", path.display());
    }
}

fn size(dir: &Path) {
    let found = statvfs(dir).unwrap();
    assert!(found.f_blocks > 0 && found.f_bavail <= found.f_blocks);
    assert_eq!(found.f_namemax, 255);
}

fn whole_locks(dir: &Path) {
    let (path, first) = file(dir, "f", "");
    let second = File::open(&path).unwrap();
    flock(&first, FlockOperation::LockExclusive).unwrap();
    let shared = FlockOperation::NonBlockingLockShared;
    assert_eq!(flock(&second, shared), Err(Errno::AGAIN));
    drop(first);
    flock(&second, shared).unwrap();
}

/// A lock of fcntl(2) ends with any descriptor that its process closes, one for reading, too.
fn process_locks(dir: &Path) {
    let (path, _file) = file(dir, "f", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let locked = File::open(&path).unwrap();
    fcntl_lock(&locked, FlockOperation::LockShared).unwrap();
    assert_eq!(as_user("lock", &path), "11");
    drop(File::open(&path).unwrap());
    assert_eq!(as_user("lock", &path), "ok");
}

/// Whether the one who asks might have made another or not.
fn existing_names(dir: &Path) {
    let (path, _file) = file(dir, "f", "text");
    let exists = Some(Errno::EXIST.raw_os_error());
    let refused = [
        fs::create_dir(&path),
        std::os::unix::fs::symlink("target", &path),
        fs::hard_link(&path, &path),
        File::create_new(&path).map(drop),
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).map_err(Into::into),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().raw_os_error(), exists);
    }
    assert_eq!(text(&path), "text");
    for mode in [0o755, 0o777] {
        chmod(dir, mode);
        for operation in ["mkdir", "create"] {
            assert_eq!(as_user(operation, &path), "17", "{operation}, {mode:o}");
        }
    }
}

fn no_name(dir: &Path, flags: OFlags) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | flags;
    open(dir, flags, Mode::from_raw_mode(0o640)).unwrap().into()
}

fn nameless(dir: &Path) {
    let file = no_name(dir, OFlags::EXCL);
    file.write_all_at(b"text", 0).unwrap();
    let found = file.metadata().unwrap();
    assert_eq!((found.nlink(), found.mode() & 0o7777), (0, 0o640));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    let reopened = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    assert_eq!(text(Path::new(&reopened)), "text");
}

fn named_later(dir: &Path) {
    let file = no_name(dir, OFlags::empty());
    file.write_all_at(b"text", 0).unwrap();
    let path = dir.join("f");
    let of_process = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(CWD, of_process, CWD, &path, AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(text(&path), "text");
}
