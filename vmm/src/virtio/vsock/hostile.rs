//! Streams between host programs and a guest that know one another's ports, but keep no rule
//! otherwise: packets of streams in every state, ids that come in parts, machines that are saved
//! and restored, and programs that claim a stream of a saved machine by its id.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rvm_fuzz_input::Decisions;
use rvm_protocol::AGENT_PORT;
use vm_memory::ByteValued;

use super::connection::RECEIVE_BUFFER;
use super::*;
use crate::virtio::fake_driver::FakeDriver;

/// Far more than one input needs, on a busy machine too.
const LONG: Duration = Duration::from_secs(5);

/// The most of a host program's connections at a time.
const MAX_STREAMS: usize = 16;

/// The room of the guest for the data of one packet.
const ROOM: usize = 4096;

const PORTS: [u32; 2] = [AGENT_PORT, STREAM_PORT];

/// A guest and the host programs that have connected to it.
struct World {
    driver: FakeDriver<Vsock>,
    dir: tempfile::TempDir,
    /// How many times the machine was restored: the sockets of each have names of their own.
    restored: u32,
    /// After which no stream of the saved machine is claimed any more.
    drop: Option<Arc<EventFd>>,
    streams: Vec<UnixStream>,
    /// The streams that the guest has heard of: its port and the host's.
    known: Vec<(u32, u32)>,
}

/// Plays as the bytes decide.
pub fn streams(input: &[u8]) {
    let started = Instant::now();
    let mut decisions = Decisions(input);
    let mut world = World::new();
    while !decisions.are_over() {
        if world.act(&mut decisions).is_err() {
            world.restart();
        }
        world.check();
    }
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners = listeners(&dir, 0);
        let mut world = Self {
            driver: FakeDriver::new(Vsock::new(listeners).unwrap()),
            dir,
            restored: 0,
            drop: None,
            streams: Vec::new(),
            known: Vec::new(),
        };
        world.restart();
        world
    }

    /// The guest's driver starts again, with room for packets, and its agent listens.
    fn restart(&mut self) {
        self.driver.restart();
        self.known.clear();
        for _ in 0..8 {
            self.driver.post(queue::RX, &[], size_of::<Header>() + ROOM);
        }
        let _ = self.send(READY_PORT, 5000, op::REQUEST, [0; 4], &[]);
    }

    fn check(&self) {
        let device = &self.driver.device;
        assert!(device.connections.len() <= MAX_CONNECTIONS);
        assert!(device.resets.len() <= MAX_STRAY_RESETS + MAX_CONNECTIONS);
        // Each is queued once.
        let queued = device.connections.values().filter(|one| one.is_queued);
        assert!(queued.count() <= device.send_queue.len());
        let backlogs = device.connections.values().map(Connection::backlog);
        assert!(backlogs.max().unwrap_or(0) <= RECEIVE_BUFFER as usize);
    }

    fn act(&mut self, decisions: &mut Decisions<'_>) -> Result<(), DeviceError> {
        match decisions.choose(12) {
            0 => self.connect(decisions),
            1 | 2 => self.host(decisions),
            3..6 => self.packet(decisions)?,
            6 | 7 => self.receive()?,
            8 | 9 => self.driver.wake()?,
            10 => self.go_on_elsewhere(decisions.choose(2) == 0)?,
            _ => {
                if let Some(drop) = &self.drop {
                    let _ = drop.write(1);
                }
                if decisions.choose(4) == 0 {
                    self.restart();
                }
            }
        }
        Ok(())
    }

    /// A host program connects, and begins with an id, or a part of one.
    fn connect(&mut self, decisions: &mut Decisions<'_>) {
        if self.streams.len() == MAX_STREAMS {
            self.streams.remove(0);
        }
        let path = path(&self.dir, decisions.pick(&PORTS), self.restored);
        let Ok(mut stream) = UnixStream::connect(path) else {
            return;
        };
        stream.set_nonblocking(true).unwrap();
        let id = u64::from(decisions.choose(3)).to_be_bytes();
        let _ = stream.write_all(&id[..decisions.pick(&[8, 8, 0, 3])]);
        self.streams.push(stream);
    }

    /// A host program writes, reads, shuts a direction down or hangs up.
    fn host(&mut self, decisions: &mut Decisions<'_>) {
        let count = self.streams.len().max(1);
        let at = usize::from(decisions.u8()) % count;
        let Some(mut stream) = self.streams.get(at) else {
            return;
        };
        match decisions.choose(6) {
            0 | 1 => _ = stream.write(&decisions.bytes()),
            2 => _ = stream.write(&vec![7; usize::from(decisions.u16()) * 4]),
            3 => _ = stream.read(&mut vec![0; usize::from(decisions.u16()) * 8]),
            4 => {
                let which = decisions.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                let _ = stream.shutdown(which);
            }
            _ => drop(self.streams.remove(at)),
        }
    }

    /// The guest sends a packet on a stream that it knows, or on any.
    fn packet(&mut self, decisions: &mut Decisions<'_>) -> Result<(), DeviceError> {
        let at = usize::from(decisions.u8()) % (self.known.len() + 1);
        let any = (
            decisions.pick(&PORTS),
            FIRST_HOST_PORT + u32::from(decisions.choose(4)),
        );
        let (guest_port, host_port) = self.known.get(at).copied().unwrap_or(any);
        let op = match decisions.choose(4) {
            0 => decisions.choose(9).into(),
            1 => op::RESPONSE,
            _ => op::RW,
        };
        let data = match decisions.choose(3) {
            0 => decisions.bytes(),
            1 => vec![9; usize::from(decisions.u16())],
            _ => Vec::new(),
        };
        // The flags, the guest's room and what it has forwarded, and how much longer the packet
        // says that it is.
        let lie = match decisions.choose(6) {
            0 => decisions.u32(),
            _ => 0,
        };
        let room = decisions.pick(&[1 << 16, 1 << 18, 0, 1, u32::MAX]);
        let forwarded = match decisions.choose(2) {
            0 => 0,
            _ => decisions.u32() % (1 << 20),
        };
        let rest = [decisions.choose(4).into(), room, forwarded, lie];
        self.send(host_port, guest_port, op, rest, &data)
    }

    fn send(
        &mut self,
        dst_port: u32,
        src_port: u32,
        op: u16,
        [flags, buf_alloc, fwd_cnt, lie]: [u32; 4],
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let header = Header {
            src_cid: u64::from(GUEST_CID),
            dst_cid: HOST_CID,
            src_port,
            dst_port,
            len: data.len() as u32 ^ lie,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        };
        let packet = [header.as_slice(), data].concat();
        self.driver.post(queue::TX, &packet, 0);
        self.driver.notify(queue::TX)?;
        while self.driver.response(queue::TX).is_some() {}
        Ok(())
    }

    /// The guest takes packets, gives their room back, and remembers new streams.
    fn receive(&mut self) -> Result<(), DeviceError> {
        for _ in 0..16 {
            let Some(packet) = self.driver.response(queue::RX) else {
                break;
            };
            let mut header = Header::default();
            let (of_header, data) = packet.split_at(size_of::<Header>());
            header.as_mut_slice().copy_from_slice(of_header);
            assert_eq!(data.len(), { header.len } as usize);
            let (stream, op) = ((header.dst_port, header.src_port), header.op);
            match op {
                op::REQUEST if self.known.len() < 2 * MAX_STREAMS => self.known.push(stream),
                op::RST => self.known.retain(|known| *known != stream),
                _ => {}
            }
            self.driver.post(queue::RX, &[], size_of::<Header>() + ROOM);
            self.driver.notify(queue::RX)?;
        }
        Ok(())
    }

    /// Saves the machine. It goes on here, or in a machine with other sockets, where host programs
    /// have to claim their streams.
    fn go_on_elsewhere(&mut self, here: bool) -> Result<(), DeviceError> {
        let Ok(state) = self.driver.call(|device, io| device.save(io)) else {
            return Ok(());
        };
        if here {
            return Ok(());
        }
        self.restored += 1;
        let drop = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let listeners = listeners(&self.dir, self.restored);
        let device = Vsock::of_checkpoint(listeners, Arc::clone(&drop)).unwrap();
        (self.driver.device, self.drop) = (device, Some(drop));
        self.driver.watches.0.clear();
        self.streams.clear();
        self.driver.call(|device, io| device.restore(&state, io))
    }
}

fn path(dir: &tempfile::TempDir, port: u32, restored: u32) -> PathBuf {
    dir.path().join(format!("{port}-{restored}"))
}

fn listeners(dir: &tempfile::TempDir, restored: u32) -> Vec<(u32, UnixListener)> {
    let bind = |port| (port, UnixListener::bind(path(dir, port, restored)).unwrap());
    PORTS.map(bind).into()
}
