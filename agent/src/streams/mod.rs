//! Standard streams: connections from the host, paired with processes.
//!
//! Each connection begins with the id of its stream. It may come before or after the request that
//! starts the process, so the first of the two waits here for the other. The bounds guard against a
//! confused host, not a hostile one: only the host can connect to this port.

mod endpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "serves tests and a fuzzer alone")]
pub mod hostile;
pub mod relay;
mod stdio;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rvm_sys::readiness::watch;
use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::sys::{Doing as _, vsock};
pub use endpoint::Endpoint;
pub use stdio::{ProcessEnds, ProcessStreams, StreamIds, Terminal, prepare};

/// Connections that may wait for their process at one time. A pod starts its containers one after
/// the other, with three streams each.
const MAX_UNPAIRED: usize = 256;
/// How long a connection may wait for its process: longer than CreateContainer takes on the slowest
/// machine.
const UNPAIRED_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest document, in bytes: the host reads configurations of up to 16 MiB.
const MAX_DOCUMENT: usize = 32 << 20;
/// Bytes per read of a document.
const DOCUMENT_CHUNK: usize = 64 * 1024;
/// How long a connection may take to send its id.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

enum Half {
    Connection { socket: OwnedFd, arrival: u64 },
    Process(oneshot::Sender<OwnedFd>),
}

#[derive(Default)]
struct Halves {
    by_id: HashMap<u64, Half>,
    connections: usize,
    arrivals: u64,
}

/// Pairs connections with the processes that claim them.
#[derive(Clone, Default)]
pub struct StreamHub {
    halves: Arc<Mutex<Halves>>,
}

impl StreamHub {
    /// Accepts connections for ever. `listener` is non-blocking.
    pub async fn serve(self, listener: OwnedFd) -> std::io::Result<()> {
        let listener = watch(listener, Interest::READABLE)?;
        loop {
            let mut ready = listener.readable().await?;
            match accept_with(
                listener.get_ref(),
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            ) {
                Ok(socket) if !vsock::peer_is_host(socket.as_fd()) => {
                    log::warn!("refused a stream from inside the guest");
                }
                Ok(socket) => {
                    tokio::spawn(self.clone().receive(socket));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                // The peer has closed the connection before it was accepted.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(errno) => {
                    log::warn!("accept a stream: {errno}");
                    // Out of descriptors or memory: wait until others are closed or freed.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn receive(self, socket: OwnedFd) {
        let Ok(endpoint) = Endpoint::new(socket) else {
            return;
        };
        let mut header = [0; 8];
        match timeout(HEADER_TIMEOUT, endpoint.read_exact(&mut header)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return log::debug!("a stream ended before its id: {error}"),
            Err(_) => return log::debug!("a stream did not send its id in time"),
        }
        let id = u64::from_be_bytes(header);
        if let Some(arrival) = self.pair(id, endpoint.into_inner()) {
            sleep(UNPAIRED_TIMEOUT).await;
            self.expire(id, arrival);
        }
    }

    /// Passes a connection to its process or keeps it; returns its arrival number if it has to
    /// wait.
    fn pair(&self, id: u64, socket: OwnedFd) -> Option<u64> {
        let mut halves = self.lock();
        match halves.by_id.remove(&id) {
            Some(Half::Process(process)) => {
                // Fails if the claim was dropped; the connection then closes.
                let _ = process.send(socket);
                None
            }
            Some(first @ Half::Connection { .. }) => {
                log::warn!("stream {id}: refused a second connection");
                halves.by_id.insert(id, first);
                None
            }
            None if halves.connections >= MAX_UNPAIRED => {
                log::warn!("stream {id}: refused, {MAX_UNPAIRED} connections wait already");
                None
            }
            None => {
                halves.connections += 1;
                halves.arrivals += 1;
                let arrival = halves.arrivals;
                halves
                    .by_id
                    .insert(id, Half::Connection { socket, arrival });
                Some(arrival)
            }
        }
    }

    fn expire(&self, id: u64, arrival: u64) {
        let mut halves = self.lock();
        let waits = matches!(halves.by_id.get(&id),
            Some(Half::Connection { arrival: waiting, .. }) if *waiting == arrival);
        if waits {
            log::warn!("stream {id}: closed, no process claimed it");
            halves.by_id.remove(&id);
            halves.connections -= 1;
        }
    }

    /// Claims the connection with this id. Fails if another process has claimed it already.
    fn claim(&self, id: u64) -> Result<Claim, StreamError> {
        let (sender, receiver) = oneshot::channel();
        let mut halves = self.lock();
        match halves.by_id.remove(&id) {
            Some(Half::Connection { socket, .. }) => {
                halves.connections -= 1;
                // The receiver exists: it cannot fail.
                let _ = sender.send(socket);
            }
            // A dropped claim leaves its sender behind.
            Some(Half::Process(other)) if !other.is_closed() => {
                halves.by_id.insert(id, Half::Process(other));
                return Err(StreamError::Claimed(id));
            }
            _ => {
                halves.by_id.insert(id, Half::Process(sender));
            }
        }
        Ok(Claim {
            hub: self.clone(),
            id,
            receiver,
        })
    }

    /// Waits for a connection that belongs to no process.
    pub async fn connection(&self, id: u64) -> Result<Endpoint, StreamError> {
        let connection = timeout(UNPAIRED_TIMEOUT, self.claim(id)?.connection()).await;
        connection.ok().flatten().ok_or(StreamError::Missing(id))
    }

    /// Reads a document that the host sends over a connection of its own, to the end.
    pub async fn document(&self, id: u64) -> Result<Vec<u8>, StreamError> {
        let connection = self.connection(id).await?;
        let mut document = Vec::new();
        let mut chunk = vec![0; DOCUMENT_CHUNK];
        loop {
            let length = connection.read(&mut chunk).await;
            match length.doing(|| "read a document of the host's")? {
                0 => return Ok(document),
                length if document.len() + length > MAX_DOCUMENT => {
                    return Err(StreamError::TooLong);
                }
                length => document.extend_from_slice(&chunk[..length]),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's claim of a connection, until it is dropped.
struct Claim {
    hub: StreamHub,
    id: u64,
    receiver: oneshot::Receiver<OwnedFd>,
}

impl Claim {
    async fn connection(mut self) -> Option<Endpoint> {
        let socket = (&mut self.receiver).await.ok()?;
        Endpoint::new(socket)
            .inspect_err(|error| log::warn!("stream {}: {error}", self.id))
            .ok()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.receiver.close();
        let mut halves = self.hub.lock();
        let withdrawn = matches!(halves.by_id.get(&self.id),
            Some(Half::Process(process)) if process.is_closed());
        if withdrawn {
            halves.by_id.remove(&self.id);
        }
    }
}

/// Why a process could not have its streams.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("stream {0} already belongs to another process")]
    Claimed(u64),
    #[error("stream {0} was not opened")]
    Missing(u64),
    #[error(
        "a process cannot have more than {} extra descriptors",
        stdio::MAX_EXTRA
    )]
    TooMany,
    #[error("a document has more than {} MiB", MAX_DOCUMENT >> 20)]
    TooLong,
    #[error(transparent)]
    Os(#[from] crate::sys::OsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::os::unix::net::UnixStream::pair().unwrap().0.into()
    }

    #[tokio::test]
    async fn a_connection_waits_for_its_process() {
        let hub = StreamHub::default();
        assert!(hub.pair(7, socket()).is_some());
        assert!(hub.claim(7).unwrap().receiver.try_recv().is_ok());
        assert_eq!(hub.lock().connections, 0);
    }

    #[tokio::test]
    async fn a_process_waits_for_its_connection() {
        let hub = StreamHub::default();
        let mut claim = hub.claim(7).unwrap();
        assert!(claim.receiver.try_recv().is_err());
        assert!(hub.pair(7, socket()).is_none());
        assert!(claim.receiver.try_recv().is_ok());
    }

    #[tokio::test]
    async fn two_processes_cannot_share_a_stream() {
        let hub = StreamHub::default();
        let _first = hub.claim(7).unwrap();
        assert!(matches!(hub.claim(7), Err(StreamError::Claimed(7))));
    }

    #[tokio::test]
    async fn a_withdrawn_claim_leaves_nothing_behind() {
        let hub = StreamHub::default();
        drop(hub.claim(7).unwrap());
        assert!(hub.lock().by_id.is_empty());
        assert!(hub.claim(7).is_ok());
    }

    #[tokio::test]
    async fn a_document_is_read_to_its_end_and_no_further_than_its_bound() {
        for (length, is_read) in [(3_000_000, true), (MAX_DOCUMENT + 1, false)] {
            let hub = StreamHub::default();
            let (mut host, guest) = std::os::unix::net::UnixStream::pair().unwrap();
            assert!(hub.pair(7, guest.into()).is_some());
            // Fails if the reader has given up.
            let send = move || std::io::Write::write_all(&mut host, &vec![7; length]);
            let sent = tokio::task::spawn_blocking(send);
            match hub.document(7).await {
                Ok(document) => assert_eq!(document, vec![7; length]),
                Err(error) => assert!(!is_read && matches!(error, StreamError::TooLong)),
            }
            let _ = sent.await.unwrap();
        }
    }

    #[tokio::test]
    async fn waiting_connections_are_bounded() {
        let hub = StreamHub::default();
        for id in 0..MAX_UNPAIRED as u64 {
            assert!(hub.pair(id, socket()).is_some());
        }
        assert!(hub.pair(u64::MAX, socket()).is_none());
    }

    #[tokio::test]
    async fn an_expired_connection_is_closed_but_not_its_successor() {
        let hub = StreamHub::default();
        let arrival = hub.pair(7, socket()).unwrap();
        hub.expire(7, arrival);
        assert!(hub.lock().by_id.is_empty());
        assert!(hub.pair(7, socket()).is_some());
        hub.expire(7, arrival);
        assert_eq!(hub.lock().connections, 1);
    }
}
