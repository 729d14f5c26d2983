//! Docker's name server at 127.0.0.11: the agent relays DNS queries to that address to the host
//! (see `rvm_protocol::names`), which asks them in the container's network namespace.

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

/// How many queries may wait for their answers. The host answers each, with an empty message if
/// there is no answer, so none waits for ever.
const MAX_WAITING: usize = 256;

/// The longest query or answer, in bytes.
const MAX_MESSAGE: usize = u16::MAX as usize;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Where an answer goes.
enum Client {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// A query from a connection, and where its answer goes.
type Query = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// Whether the relay runs. A copy is another handle.
#[derive(Clone, Default)]
pub struct Names(Arc<AtomicBool>);

impl Names {
    /// Starts the relay on the stream of this id. Queries reach it once this returns. Does nothing
    /// if it runs already.
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
    let (ask, queries) = mpsc::channel(16);
    tokio::spawn(connections::serve(listener, ask));
    let relay = Relay {
        host: Arc::new(host),
        datagrams,
        waiting: HashMap::new(),
        next_tag: 0,
    };
    tokio::spawn(async move {
        match relay.run(queries).await {
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
    waiting: HashMap<u32, Client>,
    next_tag: u32,
}

impl Relay {
    /// Runs until the host closes the stream.
    async fn run(mut self, mut queries: mpsc::Receiver<Query>) -> io::Result<()> {
        let (found, mut answers) = mpsc::channel(16);
        tokio::spawn(read_answers(self.host.clone(), found));
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            tokio::select! {
                received = self.datagrams.recv_from(&mut buffer) => {
                    // An error comes from an answer to a client that is gone.
                    if let Ok((length, from)) = received {
                        let client = Client::Datagram(from);
                        self.ask(Transport::Udp, &buffer[..length], client).await?;
                    }
                }
                Some((message, answer)) = queries.recv() => {
                    let client = Client::Connection(answer);
                    self.ask(Transport::Tcp, &message, client).await?;
                }
                answer = answers.recv() => match answer {
                    Some((tag, message)) => self.answer(tag, message).await,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn ask(
        &mut self,
        transport: Transport,
        message: &[u8],
        client: Client,
    ) -> io::Result<()> {
        if self.waiting.len() >= MAX_WAITING {
            log::debug!("dropped a DNS query: {MAX_WAITING} wait already");
            return Ok(());
        }
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        self.waiting.insert(tag, client);
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
            // Fails if the client is gone.
            Some(Client::Datagram(to)) if !message.is_empty() => {
                let _ = self.datagrams.send_to(&message, to).await;
            }
            Some(Client::Connection(answer)) if !message.is_empty() => {
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
