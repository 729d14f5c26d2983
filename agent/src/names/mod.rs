//! Names that Docker serves at 127.0.0.11: questions that arrive there in the guest are passed to the
//! host (see `rvm_protocol::names`), which asks them in the container's network namespace.

mod connections;
mod redirect;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rvm_protocol::names::{Header, SERVER, Transport};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot};

use crate::streams::{Endpoint, StreamHub};
use redirect::Ports;

/// Questions that may wait for their answers. The host answers each, if only by saying that there is
/// no answer, so none waits forever.
const MAX_WAITING: usize = 256;

/// The longest question or answer.
const MAX_MESSAGE: usize = u16::MAX as usize;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Who asked.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// A question that came on a connection, and where the answer goes.
type Question = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// Whether names are relayed already.
#[derive(Clone, Default)]
pub struct Names(Arc<AtomicBool>);

impl Names {
    /// Starts to relay on the stream of this id. Questions are redirected to the relay once this
    /// returns. Doing it again does nothing.
    pub async fn relay(&self, streams: &StreamHub, stream: u64) -> io::Result<()> {
        if self.0.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let started = start(streams, stream).await;
        if started.is_err() {
            self.0.store(false, Ordering::Relaxed);
        }
        started
    }
}

async fn start(streams: &StreamHub, stream: u64) -> io::Result<()> {
    let host = streams.connection(stream).await.map_err(io::Error::other)?;
    let datagrams = UdpSocket::bind((SERVER, 0)).await?;
    let listener = TcpListener::bind((SERVER, 0)).await?;
    let ports = Ports {
        udp: datagrams.local_addr()?.port(),
        tcp: listener.local_addr()?.port(),
    };
    redirect::install(ports, open_cgroup_root()?.as_fd())?;
    let (ask, questions) = mpsc::channel(16);
    tokio::spawn(connections::serve(listener, ask));
    let relay = Relay {
        host: Arc::new(host),
        datagrams,
        waiting: HashMap::new(),
        next_tag: 0,
    };
    tokio::spawn(async move {
        match relay.run(questions).await {
            Ok(()) => log::debug!("names are no longer relayed"),
            Err(error) => log::warn!("names are no longer relayed: {error}"),
        }
    });
    Ok(())
}

fn open_cgroup_root() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(CGROUP_ROOT, flags, Mode::empty())?)
}

struct Relay {
    host: Arc<Endpoint>,
    datagrams: UdpSocket,
    waiting: HashMap<u32, Asker>,
    next_tag: u32,
}

impl Relay {
    /// Runs until the host hangs up.
    async fn run(mut self, mut questions: mpsc::Receiver<Question>) -> io::Result<()> {
        let (found, mut answers) = mpsc::channel(16);
        tokio::spawn(read_answers(self.host.clone(), found));
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            tokio::select! {
                received = self.datagrams.recv_from(&mut buffer) => {
                    // An error is about an answer that nobody wanted any more.
                    if let Ok((length, from)) = received {
                        let asker = Asker::Datagram(from);
                        self.ask(Transport::Udp, &buffer[..length], asker).await?;
                    }
                }
                Some((message, answer)) = questions.recv() => {
                    let asker = Asker::Connection(answer);
                    self.ask(Transport::Tcp, &message, asker).await?;
                }
                answer = answers.recv() => match answer {
                    Some((tag, message)) => self.answer(tag, message).await,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn ask(&mut self, transport: Transport, message: &[u8], asker: Asker) -> io::Result<()> {
        if self.waiting.len() >= MAX_WAITING {
            log::debug!("a question about a name was dropped: {MAX_WAITING} wait already");
            return Ok(());
        }
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        self.waiting.insert(tag, asker);
        let header = Header {
            tag,
            transport,
            length: u16::try_from(message.len()).unwrap_or(u16::MAX),
        };
        self.host.write_all(&header.to_bytes()).await?;
        self.host.write_all(message).await
    }

    async fn answer(&mut self, tag: u32, message: Vec<u8>) {
        match self.waiting.remove(&tag) {
            // Whoever asked may be gone.
            Some(Asker::Datagram(to)) if !message.is_empty() => {
                let _ = self.datagrams.send_to(&message, to).await;
            }
            Some(Asker::Connection(answer)) if !message.is_empty() => {
                let _ = answer.send(message);
            }
            _ => {}
        }
    }
}

async fn read_answers(host: Arc<Endpoint>, found: mpsc::Sender<(u32, Vec<u8>)>) {
    let mut header = [0; Header::SIZE];
    while host.read_exact(&mut header).await.is_ok() {
        let header = Header::from_bytes(header);
        let mut message = vec![0; usize::from(header.length)];
        if host.read_exact(&mut message).await.is_err()
            || found.send((header.tag, message)).await.is_err()
        {
            return;
        }
    }
}
