use super::super::client::Client;
use super::super::message::opcode;
use super::*;
use crate::jail::filter::ThreadKind;
use virtiofsd::fuse::{EntryOut, LinkIn, OpenOut, ReadIn, ReleaseIn};
use vm_memory::ByteValued;

struct Made {
    guest: Client,
    entry: EntryOut,
    handle: u64,
}

fn make(guest: &mut Client, flags: libc::c_int) -> Result<(EntryOut, u64), i32> {
    let request = CreateIn {
        flags: (libc::O_RDWR | libc::O_TMPFILE | flags).cast_unsigned(),
        mode: libc::S_IFREG | 0o666,
        umask: 0o027,
        open_flags: 0,
    };
    let body = [request.as_slice(), b"#1\0"].concat();
    let answer = guest.call(opcode::TMPFILE, 1, &body)?;
    let (entry, opened) = answer.split_at(size_of::<EntryOut>());
    let handle = OpenOut::from_slice(opened).unwrap().fh;
    Ok((*EntryOut::from_slice(entry).unwrap(), handle))
}

impl Made {
    fn new() -> Self {
        let mut guest = Client::new();
        let (entry, handle) = make(&mut guest, 0).unwrap();
        Self {
            guest,
            entry,
            handle,
        }
    }

    fn write(&mut self, text: &[u8]) -> u32 {
        let inode = self.entry.nodeid;
        self.guest.write(inode, self.handle, 0, text).unwrap()
    }

    fn read(&mut self, handle: u64) -> Result<Vec<u8>, i32> {
        let request = ReadIn {
            fh: handle,
            size: 100,
            ..ReadIn::default()
        };
        self.guest.call(15, self.entry.nodeid, request.as_slice())
    }

    fn forget(&mut self) {
        let count = 1_u64.to_ne_bytes();
        self.guest.send(2, self.entry.nodeid, &count);
        self.guest.driver.response(1).unwrap();
    }

    fn release(&mut self, handle: u64) {
        let request = ReleaseIn {
            fh: handle,
            ..ReleaseIn::default()
        };
        let released = (self.guest).call(18, self.entry.nodeid, request.as_slice());
        assert_eq!(released, Ok(Vec::new()));
    }
}

#[test]
fn a_file_is_written_and_read_and_has_no_name() {
    let mut made = Made::new();
    assert_eq!(made.entry.attr.nlink, 0);
    assert_eq!(made.entry.attr.mode, libc::S_IFREG | 0o640);
    assert_eq!(made.write(b"text"), 4);
    assert_eq!(made.read(made.handle), Ok(b"text".to_vec()));
    let again = made.guest.open(made.entry.nodeid, libc::O_RDONLY);
    assert_eq!(made.read(again), Ok(b"text".to_vec()));
    assert_eq!(std::fs::read_dir(made.guest.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_gets_a_name_later_unless_it_was_opened_never_to_have_one() {
    let mut made = Made::new();
    made.write(b"text");
    let link = |made: &mut Made, name: &str| {
        let request = LinkIn {
            oldnodeid: made.entry.nodeid,
        };
        let body = [request.as_slice(), name.as_bytes(), b"\0"].concat();
        made.guest.call(13, 1, &body)
    };
    let answer = link(&mut made, "named").unwrap();
    let named = EntryOut::from_slice(&answer).unwrap().attr;
    assert_eq!((named.ino, named.nlink), (made.entry.attr.ino, 1));
    assert_eq!(std::fs::read(made.guest.path("named")).unwrap(), b"text");
    (made.entry, made.handle) = make(&mut made.guest, libc::O_EXCL).unwrap();
    assert_eq!(link(&mut made, "never").unwrap_err(), libc::ENOENT);
}

#[test]
fn attributes_locks_and_flags_are_those_of_other_files() {
    let mut made = Made::new();
    let request = SetattrIn {
        valid: 1 | 1 << 3 | 1 << 5,
        mode: 0o600,
        size: 10,
        mtime: 1_000_000_000,
        mtimensec: 7,
        ..SetattrIn::default()
    };
    let inode = made.entry.nodeid;
    made.guest.call(4, inode, request.as_slice()).unwrap();
    let answer = made.guest.call(opcode::STATX, inode, &[0; 24]).unwrap();
    let found = super::super::statx::StatxOut::from_slice(&answer).unwrap();
    assert_eq!((found.mode & 0o7777, found.size), (0o600, 10));
    let lock = virtiofsd::fuse::LkIn {
        fh: made.handle,
        owner: 1,
        lk: virtiofsd::fuse::FileLock {
            end: i64::MAX as u64,
            type_: libc::F_WRLCK as u32,
            ..Default::default()
        },
        ..Default::default()
    };
    let locked = made.guest.call(opcode::SETLK, inode, lock.as_slice());
    assert_eq!(locked, Ok(Vec::new()));
}

#[test]
fn a_file_goes_when_the_guest_has_closed_and_forgotten_it() {
    let mut made = Made::new();
    made.write(b"text");
    made.forget();
    assert_eq!(made.read(made.handle), Ok(b"text".to_vec()), "still open");
    made.release(made.handle);
    assert_eq!(made.read(made.handle), Err(libc::EBADF));
    let attributes = made.guest.call(3, made.entry.nodeid, &[0; 16]);
    assert_eq!(attributes, Err(libc::EBADF));
}

#[test]
fn the_number_of_files_is_limited() {
    let mut guest = Client::new();
    let made = std::iter::from_fn(|| make(&mut guest, 0).ok());
    // An inode and a handle each, of an eighth of the client's 1024 descriptors.
    assert_eq!(made.take(100).count(), 64);
    assert_eq!(make(&mut guest, 0).unwrap_err(), libc::ENFILE);
    guest.init();
    assert!(make(&mut guest, 0).is_ok());
}

#[test]
fn the_filter_of_the_threads_calls_allows_files_without_a_name() {
    let mut made = Made::new();
    std::os::unix::fs::chown(made.guest.dir.path(), Some(1000), None).unwrap();
    let filtered = std::thread::spawn(move || {
        ThreadKind::Files.apply().unwrap();
        made.guest.uid = 1000;
        let (entry, _) = make(&mut made.guest, 0).unwrap();
        assert_eq!(entry.attr.uid.into_inner(), 1000);
        let inode = entry.nodeid;
        let request = SetattrIn {
            valid: 0b11_1111,
            mode: 0o600,
            size: 10,
            ..SetattrIn::default()
        };
        made.guest.call(4, inode, request.as_slice()).unwrap();
        made.guest.call(17, inode, &[]).unwrap();
        made.guest.open(inode, libc::O_RDWR);
        made
    });
    filtered.join().unwrap();
}
