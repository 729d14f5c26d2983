//! A guest's FUSE client for tests: it sends messages to the device by a fake driver.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use virtiofsd::filesystem::FsOptions;
use virtiofsd::fuse::{
    EntryOut, InHeader, InitInCompat, OpenIn, OpenOut, OutHeader, WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::message::opcode;
use super::spec::{HIPRIO_QUEUE, REQUEST_QUEUE};
use super::{Busy, DeviceError, Fs, REPLIES, Readiness, ServerResources, VirtioDevice};
use crate::jail::OwnDescriptors;
use crate::virtio::fake_driver::{FakeDriver, Watches};

pub const LOOKUP: u32 = 1;
pub const OPEN: u32 = 14;

const ROOT: u64 = 1;

/// The room for an answer.
const ROOM: usize = 8192;

/// Longer than any answer takes that comes at all.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What follows the header of an answer, or an errno.
pub type Answer = Result<Vec<u8>, i32>;

fn device(root: &Path) -> Fs {
    // As in the jail.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty()).unwrap().into();
    let resources = ServerResources {
        own: OwnDescriptors {
            files: open("/proc/self/fd"),
            infos: open("/proc/self/fdinfo"),
        },
        max_fds: 1024,
    };
    Fs::of_directory(root.to_str().unwrap(), resources, "tag").unwrap()
}

/// A directory of the host, served to a guest.
pub struct Client {
    pub driver: FakeDriver<Fs>,
    pub dir: tempfile::TempDir,
    pub options: FsOptions,
    unique: u64,
    pub uid: u32,
}

impl Client {
    /// Mounts an empty directory with everything that the guest's kernel can.
    pub fn new() -> Self {
        Self::serving(tempfile::tempdir().unwrap())
    }

    /// Mounts this directory.
    pub fn serving(dir: tempfile::TempDir) -> Self {
        let mut client = Self {
            driver: FakeDriver::new(device(dir.path())),
            dir,
            options: FsOptions::empty(),
            unique: 0,
            uid: 0,
        };
        client.init();
        client
    }

    /// The state of the device.
    pub fn save(&mut self) -> Result<Vec<u8>, Busy> {
        self.driver.call(|device, io| device.save(io))
    }

    /// Goes on with another device, which serves this directory and has this state.
    pub fn go_on(&mut self, root: &Path, state: &[u8]) -> Result<(), DeviceError> {
        self.replace_device(root);
        self.restore(state)
    }

    /// Replaces the device by one that serves this directory and is not started.
    pub fn replace_device(&mut self, root: &Path) {
        // Ends the threads that wait, as the end of a process does.
        self.driver.device.reset(&mut self.driver.watches);
        self.driver.watches = Watches::default();
        self.driver.device = device(root);
    }

    pub fn restore(&mut self, state: &[u8]) -> Result<(), DeviceError> {
        self.driver.call(|device, io| {
            device.start(0, io)?;
            device.restore(state, io)
        })
    }

    pub fn init(&mut self) {
        let capable = FsOptions::all().bits();
        let request = InitInCompat {
            major: 7,
            minor: 41,
            max_readahead: 0,
            flags: capable as u32,
        };
        let mut body = request.as_slice().to_vec();
        body.extend(((capable >> 32) as u32).to_ne_bytes());
        body.extend([0; 44]);
        let answer = self.call(26, 0, &body).unwrap();
        let flags = u64::from(u32::from_ne_bytes(answer[12..16].try_into().unwrap()));
        let more = u64::from(u32::from_ne_bytes(answer[32..36].try_into().unwrap()));
        self.options = FsOptions::from_bits_truncate(flags | more << 32);
    }

    /// The host's path of a name in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn message(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid,
            uid: self.uid.into(),
            gid: self.uid.into(),
            ..InHeader::default()
        };
        [header.as_slice(), body].concat()
    }

    /// Sends a request and returns its number; the answer may come later.
    pub fn send(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> u64 {
        self.try_send(opcode, nodeid, body).unwrap();
        self.unique
    }

    /// Sends a request that may be the end of the device.
    pub fn try_send(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Result<(), DeviceError> {
        self.try_send_with_room(opcode, nodeid, body, ROOM)
    }

    /// Sends a request whose answer may have `room` bytes.
    pub fn try_send_with_room(
        &mut self,
        opcode: u32,
        nodeid: u64,
        body: &[u8],
        room: usize,
    ) -> Result<(), DeviceError> {
        let message = self.message(opcode, nodeid, body);
        self.driver.post(REQUEST_QUEUE, &message, room);
        self.driver.notify(REQUEST_QUEUE)
    }

    /// Makes a FORGET of one reference available. No notification tells of it yet.
    pub fn post_forget(&mut self, inode: u64) {
        let message = self.message(2, inode, &1_u64.to_ne_bytes());
        self.driver.post(HIPRIO_QUEUE, &message, 0);
    }

    /// Interrupts a request.
    pub fn interrupt(&mut self, unique: u64) {
        let message = self.message(36, 0, &unique.to_ne_bytes());
        self.driver.post(HIPRIO_QUEUE, &message, 0);
        self.driver.notify(HIPRIO_QUEUE).unwrap();
    }

    /// The next answer that has come, with its request's number.
    pub fn answer(&mut self) -> Option<(u64, Answer)> {
        let bytes = self.driver.response(REQUEST_QUEUE)?;
        let (header, body) = bytes.split_at(size_of::<OutHeader>());
        let header = OutHeader::from_slice(header).unwrap();
        assert_eq!(header.len as usize, bytes.len());
        let answer = match header.error {
            0 => Ok(body.to_vec()),
            error => Err(-error),
        };
        Some((header.unique, answer))
    }

    /// Waits for an answer that comes later.
    pub fn wait(&mut self) -> (u64, Answer) {
        let started = Instant::now();
        loop {
            if let Some(answer) = self.answer() {
                return answer;
            }
            assert!(started.elapsed() < TIMEOUT, "no answer came");
            // The filter of the device's thread allows no poll(2).
            std::thread::yield_now();
            self.driver
                .call(|fs, io| fs.process_host_event(REPLIES, Readiness::READABLE, io))
                .unwrap();
        }
    }

    /// Sends a request that is answered at once.
    pub fn call(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Answer {
        let unique = self.send(opcode, nodeid, body);
        let (answered, answer) = self.answer().expect("an answer at once");
        assert_eq!(answered, unique);
        answer
    }

    pub fn lookup(&mut self, name: &str) -> Result<EntryOut, i32> {
        let answer = self.call(LOOKUP, ROOT, format!("{name}\0").as_bytes())?;
        Ok(*EntryOut::from_slice(&answer).unwrap())
    }

    /// Sends a WRITE; the bytes that its answer counts.
    pub fn write_with(&mut self, inode: u64, request: &WriteIn, data: &[u8]) -> Result<u32, i32> {
        let body = [request.as_slice(), data].concat();
        let answer = self.call(opcode::WRITE, inode, &body)?;
        Ok(WriteOut::from_slice(&answer).unwrap().size)
    }

    /// Opens a file and returns its handle.
    pub fn open(&mut self, inode: u64, flags: libc::c_int) -> u64 {
        let request = OpenIn {
            flags: flags.cast_unsigned(),
            open_flags: 0,
        };
        let answer = self.call(OPEN, inode, request.as_slice()).unwrap();
        // The attributes follow.
        let (opened, _) = answer.split_at(size_of::<OpenOut>());
        OpenOut::from_slice(opened).unwrap().fh
    }
}

/// Gives the calling thread a mount namespace of its own.
#[expect(unsafe_code, reason = "unshare can break what relies on shared state")]
pub fn private_mounts() {
    // SAFETY: only the calling thread, which shares no descriptors' table, is changed.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    let flags =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).unwrap();
}
