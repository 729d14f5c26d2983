//! virtio-fs: FUSE requests, as include/uapi/linux/fuse.h defines them.

use crate::cpu::{fill, get32, get64, put8, put32, put64};
use crate::virtio::{BUFFERS, Device, NEXT, Queue, WRITE};

/// Operations.
pub mod fuse {
    pub const LOOKUP: u32 = 1;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const INIT: u32 = 26;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// The lengths of the headers.
const SENT: u64 = 40;
const RETURNED: u64 = 16;

/// The node of the shared directory.
pub const TOP: u64 = 1;

/// Where requests and their answers are.
const REQUEST: u64 = BUFFERS;
pub const ANSWER: u64 = BUFFERS + 0x1_0000;
const ROOM: u32 = 0x2000;

/// Requests that nobody waits for, a page each.
const FLOOD: u64 = BUFFERS + 0x10_0000;

/// The container of the test, whose root the guest works in.
const CONTAINER: [&[u8]; 2] = [b"box", b"rootfs"];

/// The device.
pub struct Files {
    requests: Queue,
    unique: u64,
    /// The node of the container's root.
    pub root: u64,
    /// The node and the handle of a file that is locked.
    pub locked: Option<(u64, u64)>,
    /// Requests that nobody has waited for.
    in_flight: u16,
    /// It has not answered a request.
    pub is_silent: bool,
}

/// A request that is being written.
pub struct Request(u64);

impl Request {
    /// Without the header, which comes last.
    pub fn new() -> Self {
        Self(REQUEST + SENT)
    }

    pub fn word(mut self, value: u32) -> Self {
        put32(self.0, value);
        self.0 += 4;
        self
    }

    pub fn long(mut self, value: u64) -> Self {
        put64(self.0, value);
        self.0 += 8;
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            put8(self.0, *byte);
            self.0 += 1;
        }
        self
    }

    /// With the zero at its end.
    pub fn name(self, name: &[u8]) -> Self {
        self.bytes(name).bytes(&[0])
    }
}

impl Files {
    /// Starts the device, and looks the container's root up.
    pub fn new(device: Device) -> Self {
        let [_, requests, ..] = device.start();
        let mut files = Self {
            requests,
            unique: 2,
            root: TOP,
            locked: None,
            in_flight: 0,
            is_silent: false,
        };
        let mut init = Request::new().word(7).word(38).word(0x10_0000).word(0);
        for _ in 0..12 {
            init = init.word(0);
        }
        files.ask(fuse::INIT, 0, init);
        for name in CONTAINER {
            if let Some(node) = files.lookup(files.root, name) {
                files.root = node;
            }
        }
        files
    }

    /// Sends a request; returns the error, 0 for success. None if there is no answer in time.
    pub fn ask(&mut self, operation: u32, node: u64, request: Request) -> Option<i32> {
        let length = (request.0 - REQUEST) as u32;
        self.ask_lying(operation, node, request, length)
    }

    /// Sends a request whose header has this length.
    pub fn ask_lying(
        &mut self,
        operation: u32,
        node: u64,
        request: Request,
        length: u32,
    ) -> Option<i32> {
        self.unique += 2;
        let sent = self.head(operation, node, request, Some(length));
        fill(ANSWER, 0, RETURNED as usize);
        let answer = self.requests.ask((REQUEST, sent), (ANSWER, ROOM));
        self.is_silent |= answer.is_none();
        answer?;
        Some(get32(ANSWER + 4).cast_signed())
    }

    /// Sends a request as often as the queue has room, and waits for no answer. Returns how often.
    pub fn flood(
        &mut self,
        operation: u32,
        node: u64,
        mut request: impl FnMut(u64) -> Request,
    ) -> u16 {
        while self.requests.take().is_some() {
            self.in_flight -= 1;
        }
        let room = self.requests.entries / 2 - self.in_flight;
        for _ in 0..room {
            self.unique += 2;
            let bytes = self.head(operation, node, request(self.unique), None);
            // Each place of the ring has descriptors and memory of its own, which the answer may
            // still need: a guest that does not care.
            let place = self.requests.next_place() % (self.requests.entries / 2);
            let copy = FLOOD + u64::from(place) * 0x1000;
            crate::cpu::copy(copy, REQUEST, bytes as usize);
            self.requests
                .describe(2 * place, copy, bytes, NEXT, 2 * place + 1);
            self.requests
                .describe(2 * place + 1, copy + 0x800, 0x800, WRITE, 0);
            self.requests.post(2 * place);
            self.in_flight += 1;
        }
        self.requests.notify();
        room
    }

    /// Writes a request's header; returns its length in the guest's memory.
    fn head(&self, operation: u32, node: u64, request: Request, length: Option<u32>) -> u32 {
        let sent = (request.0 - REQUEST) as u32;
        put32(REQUEST, length.unwrap_or(sent));
        put32(REQUEST + 4, operation);
        put64(REQUEST + 8, self.unique);
        put64(REQUEST + 16, node);
        // Root's, of process 1.
        put64(REQUEST + 24, 0);
        put64(REQUEST + 32, 1);
        sent
    }

    /// The handle of a node that is opened.
    pub fn open(&mut self, node: u64, flags: u32) -> Option<u64> {
        let error = self.ask(fuse::OPEN, node, Request::new().word(flags).word(0))?;
        (error == 0).then(|| get64(ANSWER + RETURNED))
    }

    /// The node of a name in a directory.
    pub fn lookup(&mut self, directory: u64, name: &[u8]) -> Option<u64> {
        let error = self.ask(fuse::LOOKUP, directory, Request::new().name(name))?;
        (error == 0).then(|| get64(ANSWER + RETURNED))
    }
}
