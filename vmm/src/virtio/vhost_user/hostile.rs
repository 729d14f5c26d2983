//! A front end that keeps no rule: QEMU, taken over by its guest. It sends messages with and
//! without descriptors in any order, and writes into memory and queues while the device works. The
//! back end's thread may not panic, and ends when the front end hangs up.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rvm_fuzz_input::Decisions;
use rvm_protocol::{READY_PORT, STREAM_PORT};

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// The most messages of one input.
const MAX_MESSAGES: usize = 64;

/// How long the device's thread gets for a doorbell.
const WORK: Duration = Duration::from_micros(500);

/// Far more than an end takes.
const LONG: Duration = Duration::from_secs(5);

/// What the memory's file holds, in bytes: more than any region that can be mapped and reached. A
/// region beyond the end of its file is SIGBUS, which ends the back end; it has no other guest.
const FILE: u64 = 1 << 40;

/// Where the first region begins in the guest, and the front end's address of it.
const START: u64 = 0;
const USER: u64 = 0x7000_0000_0000;
const LENGTH: u64 = 1 << 20;

/// Requests by their numbers, see `FrontendReq` of the vhost crate.
mod request {
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const LAST: u8 = 44;
}

struct FrontEnd {
    socket: UnixStream,
    memory: File,
    kicks: Vec<EventFd>,
}

/// Plays a front end of a device, which the first byte chooses.
pub fn messages(input: &[u8]) {
    let mut decisions = Decisions(input);
    let dir = tempfile::tempdir().unwrap();
    let bind = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
    match decisions.choose(2) {
        0 => {
            let device = Vsock::new(vec![(STREAM_PORT, bind("streams"))]).unwrap();
            let listener = bind("device");
            let _streams = UnixStream::connect(dir.path().join("streams"));
            let socket = UnixStream::connect(dir.path().join("device")).unwrap();
            play(
                service(device, true, Buffers::InPlace, listener),
                socket,
                decisions,
            );
        }
        _ => {
            let listener = bind("device");
            let socket = UnixStream::connect(dir.path().join("device")).unwrap();
            play(
                service(Rng, false, Buffers::Bounced, listener),
                socket,
                decisions,
            );
        }
    }
}

fn service<D>(
    device: D,
    serves_config: bool,
    buffers: Buffers,
    listener: UnixListener,
) -> Service<D> {
    Service {
        name: "hostile",
        device,
        queues: 2,
        serves_config,
        buffers,
        filter: ThreadKind::Vsock,
        listener,
    }
}

fn play<D: VirtioDevice + 'static>(
    service: Service<D>,
    socket: UnixStream,
    mut decisions: Decisions<'_>,
) {
    let (ends, end) = mpsc::channel();
    // The filters would stay with the fuzzer's own thread.
    let (mut daemon, listener) = daemon(service, ends, None).unwrap();
    daemon.start(&mut listener.into()).unwrap();
    let mut front = FrontEnd::new(socket);
    if decisions.choose(4) > 0 {
        front.set_up();
    }
    for _ in 0..MAX_MESSAGES {
        if decisions.are_over() || front.act(&mut decisions).is_none() {
            break;
        }
    }
    let started = Instant::now();
    drop(front);
    let _ = wait(&mut daemon);
    drop(daemon);
    assert!(
        started.elapsed() < LONG,
        "the back end goes on without its front end"
    );
    end.iter().for_each(drop);
}

impl FrontEnd {
    fn new(socket: UnixStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        let memory = File::from(memory);
        memory.set_len(FILE).unwrap();
        let event = |_| EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self {
            socket,
            memory,
            kicks: (0..2).map(event).collect(),
        }
    }

    /// Sends a message. None once the back end has hung up, or reads no more.
    fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Option<()> {
        let mut message: Vec<u8> = [request, 1 | flags, body.len() as u32]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        message.extend(body);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let slices = [io::IoSlice::new(&message)];
        sendmsg(&self.socket, &slices, &mut ancillary, SendFlags::NOSIGNAL).ok()?;
        // What it answers is of no interest, but must not keep it from going on.
        while io::Read::read(&mut &self.socket, &mut [0; 256]).is_ok_and(|count| count > 0) {}
        Some(())
    }

    /// Does all that QEMU does before the guest's driver is ready.
    fn set_up(&mut self) -> Option<()> {
        let features = feature::VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.send(request::SET_OWNER, 0, &[], &[])?;
        self.send(request::SET_FEATURES, 0, &features.to_le_bytes(), &[])?;
        self.send(
            request::SET_PROTOCOL_FEATURES,
            0,
            &[0xff, 0xff, 0, 0, 0, 0, 0, 0],
            &[],
        )?;
        let table = words64(&[1, START, LENGTH, USER, 0]);
        self.send(request::SET_MEM_TABLE, 0, &table, &[self.memory.as_fd()])?;
        for queue in 0..2_u64 {
            let rings = queue * 0x4000;
            let index = queue as u32;
            self.send(request::SET_VRING_NUM, 0, &words32(&[index, 16]), &[])?;
            self.send(request::SET_VRING_BASE, 0, &words32(&[index, 0]), &[])?;
            let at = |offset| USER + rings + offset;
            let addresses = words64(&[queue, at(0), at(0x2000), at(0x1000), 0]);
            self.send(request::SET_VRING_ADDR, 0, &addresses, &[])?;
            let fd = borrow_eventfd(&self.kicks[queue as usize]);
            self.send(request::SET_VRING_KICK, 0, &queue.to_le_bytes(), &[fd])?;
            self.send(request::SET_VRING_CALL, 0, &queue.to_le_bytes(), &[fd])?;
            self.send(request::SET_VRING_ENABLE, 0, &words32(&[index, 1]), &[])?;
        }
        Some(())
    }

    fn act(&mut self, decisions: &mut Decisions<'_>) -> Option<()> {
        match decisions.choose(8) {
            0 => self.message(decisions)?,
            1 | 2 => self.about_a_queue(decisions)?,
            3 => self.about_memory(decisions)?,
            4 => {
                let body = words32(&[
                    decisions.u32() % 300,
                    decisions.u32() % 300,
                    decisions.u32(),
                ]);
                self.send(
                    request::GET_CONFIG,
                    8,
                    &[body, decisions.bytes()].concat(),
                    &[],
                )?;
            }
            5 | 6 => self.request(decisions),
            _ => {
                let at = u64::from(decisions.u16()) % 0x9000;
                let _ = self.memory.write_all_at(&decisions.words(), at);
                self.kick(decisions.choose(2).into());
            }
        }
        Some(())
    }

    /// Any message, with some descriptors.
    fn message(&self, decisions: &mut Decisions<'_>) -> Option<()> {
        let (number, flags) = (
            decisions.choose(request::LAST),
            decisions.pick(&[0, 8, 4, 2, 13]),
        );
        let body = match decisions.choose(2) {
            0 => decisions.bytes(),
            _ => decisions.words(),
        };
        let fds: Vec<OwnedFd> = self.descriptors(decisions);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(number.into(), flags, &body, &fds)
    }

    /// Never the front end's own end of the socket: a back end that holds it notices no hangup, and
    /// the sandbox's owner has to kill it, as it does when QEMU ends.
    fn descriptors(&self, decisions: &mut Decisions<'_>) -> Vec<OwnedFd> {
        let count = decisions.pick(&[0, 0, 1, 1, 2, 9, 33]);
        let one = |_| match decisions.choose(3) {
            0 => self.memory.as_fd().try_clone_to_owned(),
            1 => borrow_eventfd(&self.kicks[0]).try_clone_to_owned(),
            _ => rustix::pipe::pipe()
                .map(|(_, write)| write)
                .map_err(Into::into),
        };
        (0..count).flat_map(one).collect()
    }

    fn about_a_queue(&self, decisions: &mut Decisions<'_>) -> Option<()> {
        let number = request::SET_VRING_NUM + u32::from(decisions.choose(7));
        let index = u64::from(decisions.pick(&[0_u8, 1, 2, 255]));
        let body = match number {
            request::SET_VRING_ADDR => {
                let mut at = || USER + u64::from(decisions.u32()) % (LENGTH + 0x1000);
                words64(&[index, at(), at(), at(), 0])
            }
            request::SET_VRING_KICK.. => words64(&[index | u64::from(decisions.choose(4)) << 8]),
            _ => words32(&[
                index as u32,
                decisions.pick(&[0, 1, 16, 17, 1024, 1025, u32::MAX]),
            ]),
        };
        let fds: Vec<OwnedFd> = self.descriptors(decisions);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(number, 0, &body, &fds)
    }

    /// A table of regions that overlap, wrap around, are empty, or have no files.
    fn about_memory(&self, decisions: &mut Decisions<'_>) -> Option<()> {
        let count = decisions.pick(&[0_u64, 1, 2, 3, 9]);
        let mut table = words64(&[count]);
        for _ in 0..count {
            let start = decisions.pick(&[0, 0x1000, LENGTH, u64::MAX - 0xfff, 1 << 63]);
            let size = decisions.pick(&[LENGTH, 0x1000, 0, 0xfff, 1 << 32, 1 << 62, u64::MAX]);
            let user = decisions.pick(&[USER, USER + LENGTH, 0, u64::MAX]);
            let offset = decisions.pick(&[0, 0x1000, 0x123, u64::MAX, 1 << 63]);
            table.extend(words64(&[start, size, user, offset]));
        }
        let fds = vec![self.memory.as_fd(); decisions.pick(&[count as usize, 0, 1, 8])];
        self.send(
            request::SET_MEM_TABLE,
            decisions.pick(&[0, 8]),
            &table,
            &fds,
        )
    }

    /// A request as the guest's driver would make it: of one packet for vsock, or room for bytes.
    fn request(&self, decisions: &mut Decisions<'_>) {
        let queue = u64::from(decisions.choose(2));
        let rings = queue * 0x4000;
        // struct virtio_vsock_hdr: ids, ports, length, type and operation, flags and credit.
        let mut packet = [3_u64, 2].map(u64::to_le_bytes).concat();
        let port = decisions.pick(&[READY_PORT, 1 << 16]);
        let kind = 1 | u32::from(decisions.choose(9)) << 16;
        for word in [
            STREAM_PORT,
            port,
            u32::from(decisions.choose(9)),
            kind,
            0,
            0x1_0000,
            0,
        ] {
            packet.extend(word.to_le_bytes());
        }
        packet.extend(decisions.bytes());
        let _ = self.memory.write_all_at(&packet, 0x1_0000);
        let length = decisions.pick(&[44, 52, 4096, u32::MAX]);
        let flags = u16::from(decisions.pick(&[0_u8, 2, 1, 3, 4]));
        let mut descriptor = decisions
            .pick(&[0x1_0000_u64, LENGTH - 8, USER])
            .to_le_bytes()
            .to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(decisions.pick(&[0_u16, 1, 16]).to_le_bytes());
        let _ = self.memory.write_all_at(&descriptor, rings);
        let available = u16::from(decisions.choose(20));
        let ring = [0, available, 0, 0].map(u16::to_le_bytes).concat();
        let _ = self.memory.write_all_at(&ring, rings + 0x1000);
        self.kick(queue as usize);
    }

    /// Rings a doorbell, and waits a little for the device's thread.
    fn kick(&self, queue: usize) {
        // Fails if nobody has taken very many of them.
        let _ = self.kicks[queue].write(1);
        let rung = Instant::now();
        while rung.elapsed() < WORK {
            std::thread::yield_now();
        }
    }
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
