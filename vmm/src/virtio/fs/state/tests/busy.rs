//! A guest that has files of every kind in use.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use virtiofsd::fuse::{
    Attr, AttrOut, CreateIn, EntryOut, FileLock, GetattrIn, LK_FLOCK, LkIn, OpenIn, OpenOut,
    OutHeader, ReadIn, ReleaseIn, WriteIn,
};
use vm_memory::ByteValued;

use super::super::super::client::{Answer, Client, OPEN};
use super::super::super::message::opcode;
use super::super::super::{CHANGES, DeviceError, DeviceIo, Fs, Readiness, VirtioDevice};

pub const ROOT: u64 = 1;
const READLINK: u32 = 5;
const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const OPENDIR: u32 = 27;
const KEEP_CACHE: u32 = 2;
const WRLCK: u32 = libc::F_WRLCK as u32;

/// Larger than what one request reads, with holes around.
const DATA_AT: u64 = 3 << 20;
const SIZE: u64 = 7 << 20;

impl Client {
    pub fn call_by_name(&mut self, opcode: u32, dir: u64, name: &[u8]) -> Answer {
        self.call(opcode, dir, &[name, b"\0"].concat())
    }

    pub fn find(&mut self, dir: u64, name: &[u8]) -> Result<u64, i32> {
        let answer = self.call_by_name(opcode::LOOKUP, dir, name)?;
        Ok(EntryOut::from_slice(&answer).unwrap().nodeid)
    }

    pub fn read(&mut self, inode: u64, fh: u64, offset: u64, size: u32) -> Answer {
        let request = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        // The guest has as much room as it asks for.
        let room = size_of::<OutHeader>() + size as usize;
        self.try_send_with_room(opcode::READ, inode, request.as_slice(), room)
            .unwrap();
        self.answer().unwrap().1
    }

    pub fn write(&mut self, inode: u64, fh: u64, offset: u64, text: &[u8]) -> Result<u32, i32> {
        let request = WriteIn {
            fh,
            offset,
            size: text.len() as u32,
            ..WriteIn::default()
        };
        self.write_with(inode, &request, text)
    }

    pub fn attributes(&mut self, inode: u64) -> Result<Attr, i32> {
        let request = GetattrIn::default();
        let answer = self.call(opcode::GETATTR, inode, request.as_slice())?;
        Ok(AttrOut::from_slice(&answer).unwrap().attr)
    }

    pub fn release(&mut self, inode: u64, fh: u64) -> Answer {
        let request = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(opcode::RELEASE, inode, request.as_slice())
    }

    /// Opens a file, closes it, and tells whether the guest may keep its pages.
    pub fn keeps_cache(&mut self, inode: u64) -> bool {
        let answer = self.call(OPEN, inode, OpenIn::default().as_slice());
        let answer = answer.unwrap();
        let opened = *OpenOut::from_slice(&answer[..size_of::<OpenOut>()]).unwrap();
        self.release(inode, opened.fh).unwrap();
        opened.open_flags & KEEP_CACHE != 0
    }

    pub fn create(&mut self, opcode: u32, name: &[u8], flags: libc::c_int) -> (u64, u64) {
        let request = CreateIn {
            flags: (libc::O_RDWR | flags).cast_unsigned(),
            mode: libc::S_IFREG | 0o640,
            ..CreateIn::default()
        };
        let body = [request.as_slice(), name, b"\0"].concat();
        let answer = self.call(opcode, ROOT, &body).unwrap();
        let (entry, opened) = answer.split_at(size_of::<EntryOut>());
        let opened = OpenOut::from_slice(&opened[..size_of::<OpenOut>()]).unwrap();
        (EntryOut::from_slice(entry).unwrap().nodeid, opened.fh)
    }

    /// Goes on from its state with the same directory.
    pub fn go_on_here(&mut self) {
        let state = self.save().unwrap();
        self.go_on_from(&state).unwrap();
    }

    pub fn go_on_from(&mut self, state: &[u8]) -> Result<(), DeviceError> {
        let root = self.dir.path().to_owned();
        self.go_on(&root, state)
    }

    /// The error of going on with the same directory, after something happened to it.
    pub fn refusal_after(&mut self, change: impl FnOnce(&Self)) -> String {
        let state = self.save().unwrap();
        change(self);
        self.go_on_from(&state).unwrap_err().to_string()
    }
}

pub fn copy_of(dir: &tempfile::TempDir) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let from = dir.path().join(".");
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(copy.path());
    assert!(command.status().unwrap().success());
    copy
}

fn lock(fh: u64, owner: u64, lk_flags: u32) -> LkIn {
    LkIn {
        fh,
        owner,
        lk_flags,
        lk: FileLock {
            start: 10,
            end: 19,
            type_: WRLCK,
            pid: owner as u32,
        },
        padding: 0,
    }
}

fn make_files(guest: &Client) {
    fs::create_dir_all(guest.path("dir/sub")).unwrap();
    fs::write(guest.path("dir/file"), "some text").unwrap();
    fs::write(guest.path("locked"), "").unwrap();
    symlink("dir/file", guest.path("link")).unwrap();
    let mut mkfifo = Command::new("mkfifo");
    let made = mkfifo.arg(guest.path("dir/pipe")).status();
    assert!(made.unwrap().success());
    let big = fs::File::create(guest.path("removed")).unwrap();
    big.set_len(SIZE).unwrap();
    big.write_all_at(&vec![7; 2 << 20], DATA_AT).unwrap();
}

/// A guest with files of every kind in use.
pub struct Busy {
    pub guest: Client,
    dir: u64,
    pub file: (u64, u64),
    directory_handle: u64,
    link: u64,
    pipe: u64,
    pub removed: (u64, u64),
    nameless: (u64, u64),
    waiting: u64,
    events: u64,
}

impl Busy {
    pub fn new() -> Self {
        let mut guest = Client::new();
        make_files(&guest);
        let dir = guest.find(ROOT, b"dir").unwrap();
        let inode = guest.find(dir, b"file").unwrap();
        // A second reference.
        guest.find(dir, b"file").unwrap();
        let file = (inode, guest.open(inode, libc::O_RDWR));
        let opened = guest
            .call(OPENDIR, dir, OpenIn::default().as_slice())
            .unwrap();
        let directory_handle = OpenOut::from_slice(&opened).unwrap().fh;
        let link = guest.find(ROOT, b"link").unwrap();
        let pipe = guest.find(dir, b"pipe").unwrap();
        let inode = guest.find(ROOT, b"removed").unwrap();
        let removed = (inode, guest.open(inode, libc::O_RDWR));
        guest.call_by_name(UNLINK, ROOT, b"removed").unwrap();
        let nameless = guest.create(opcode::TMPFILE, b"#1", libc::O_TMPFILE);
        guest.write(nameless.0, nameless.1, 0, b"no name").unwrap();

        let locked = guest.find(ROOT, b"locked").unwrap();
        let handle = guest.open(locked, libc::O_RDWR);
        for request in [lock(handle, 1, 0), lock(handle, 1, LK_FLOCK)] {
            guest
                .call(opcode::SETLK, locked, request.as_slice())
                .unwrap();
        }
        let request = lock(handle, 2, 0);
        let waiting = guest.send(opcode::SETLKW, locked, request.as_slice());
        guest
            .call(opcode::WATCH, dir, &1_u64.to_ne_bytes())
            .unwrap();
        let events = guest.send(opcode::EVENTS, ROOT, &[]);
        assert_eq!(guest.answer(), None);
        Self {
            guest,
            dir,
            file,
            directory_handle,
            link,
            pipe,
            removed,
            nameless,
            waiting,
            events,
        }
    }

    pub fn goes_on(&mut self) {
        self.requests_go_on();
        self.files_go_on();
        self.files_without_a_name_go_on();
    }

    /// The lock is held and waited for, and the watch tells that events were lost, and later ones.
    fn requests_go_on(&mut self) {
        let guest = &mut self.guest;
        let locked = fs::File::options().write(true).open(guest.path("locked"));
        let locked = locked.unwrap();
        assert!(flock(&locked, FlockOperation::NonBlockingLockShared).is_err());
        assert_eq!(self.next_event(), libc::IN_Q_OVERFLOW);
        let touched = self.guest.path("dir/touched");
        let mut touch = Command::new("touch");
        assert!(touch.arg(touched).status().unwrap().success());
        // It is told once for each time that it went on.
        let mut told = libc::IN_Q_OVERFLOW;
        while told == libc::IN_Q_OVERFLOW {
            told = self.next_event();
        }
        assert_eq!(told, libc::IN_CREATE);
        let guest = &mut self.guest;
        let inode = guest.find(ROOT, b"locked").unwrap();
        let mut unlock = lock(0, 1, 0);
        unlock.lk.type_ = libc::F_UNLCK as u32;
        guest.call(opcode::SETLK, inode, unlock.as_slice()).unwrap();
        assert_eq!(guest.wait(), (self.waiting, Ok(Vec::new())));
    }

    /// What the next answer to the guest's request for events tells first. The guest asks again.
    fn next_event(&mut self) -> u32 {
        let guest = &mut self.guest;
        let changes = |fs: &mut Fs, io: &mut DeviceIo<'_>| {
            fs.process_host_event(CHANGES, Readiness::READABLE, io)
        };
        guest.driver.call(changes).unwrap();
        let (unique, told) = guest.wait();
        assert_eq!(unique, self.events);
        self.events = guest.send(opcode::EVENTS, ROOT, &[]);
        u32::from_ne_bytes(told.unwrap()[8..12].try_into().unwrap())
    }

    pub fn stop_watching(&mut self) {
        let stop = 2_u64.to_ne_bytes();
        self.guest.call(opcode::WATCH, ROOT, &stop).unwrap();
        assert_eq!(self.guest.wait(), (self.events, Err(libc::ENOTCONN)));
    }

    fn files_go_on(&mut self) {
        let guest = &mut self.guest;
        let (inode, handle) = self.file;
        assert_eq!(guest.read(inode, handle, 5, 100), Ok(b"text".to_vec()));
        guest.write(inode, handle, 0, b"MORE").unwrap();
        assert_eq!(fs::read(guest.path("dir/file")).unwrap(), b"MORE text");
        assert_eq!(
            guest.find(self.dir, b"file"),
            Ok(inode),
            "it is the same inode"
        );
        let target = guest.call(READLINK, self.link, &[]);
        assert_eq!(target, Ok(b"dir/file".to_vec()));
        let mode = guest.attributes(self.pipe).unwrap().mode;
        assert_eq!(mode & libc::S_IFMT, libc::S_IFIFO);
        let request = ReadIn {
            fh: self.directory_handle,
            size: 4096,
            ..ReadIn::default()
        };
        let entries = guest.call(opcode::READDIR, self.dir, request.as_slice());
        let entries = entries.unwrap();
        assert!(entries.windows(4).any(|name| name == b"pipe"));
        guest.release(inode, handle).unwrap();
        // Twice found before, and once here.
        for left in [true, true, false] {
            guest.post_forget(inode);
            guest.driver.notify(0).unwrap();
            assert_eq!(guest.attributes(inode).is_ok(), left);
        }
    }

    fn files_without_a_name_go_on(&mut self) {
        let guest = &mut self.guest;
        let (inode, handle) = self.removed;
        let attributes = guest.attributes(inode).unwrap();
        assert_eq!((attributes.size, attributes.nlink), (SIZE, 0));
        assert_eq!(guest.read(inode, handle, 0, 4), Ok(vec![0; 4]));
        let end = DATA_AT + (2 << 20);
        assert_eq!(guest.read(inode, handle, DATA_AT - 1, 2), Ok(vec![0, 7]));
        assert_eq!(guest.read(inode, handle, end - 1, 2), Ok(vec![7, 0]));
        guest.write(inode, handle, 0, b"on").unwrap();
        let again = guest.open(inode, libc::O_RDONLY);
        assert_eq!(guest.read(inode, again, 0, 3), Ok(b"on\0".to_vec()));
        guest.release(inode, again).unwrap();
        let (inode, handle) = self.nameless;
        assert_eq!(guest.read(inode, handle, 0, 100), Ok(b"no name".to_vec()));
        assert_eq!(guest.attributes(inode).unwrap().mode & 0o7777, 0o640);
    }
}
