//! Forwarding of a pod's ports. Containerd and CRI-O serve `kubectl port-forward` by entering the
//! pod's network namespace on the host and connecting to 127.0.0.1 there, where nobody listens: the
//! programs are in the guest. [`PortForward`] accepts such a connection, and the agent connects to
//! the same port in the guest.
//!
//! Whether a program listens in the guest is known only then; if none does, the connection is
//! reset.

mod lookup;

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;

use super::Guest;
use crate::guest::stdio::open_stream;
use crate::network::Namespace;
use rvm_sys::bpf::Link;

/// Connections at one time; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 64;

/// The pause after accept(2) fails, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The listener, and the lookup program that steers connections to it.
pub struct PortForward {
    listener: TcpListener,
    _lookup: Link,
}

impl PortForward {
    /// Begins to accept connections to any port of 127.0.0.1 in the namespace.
    pub fn listen(namespace: &Namespace) -> io::Result<Self> {
        // The lookup program steers every port here, so any port will do.
        let listener = namespace.within(|| StdListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let lookup = lookup::attach(namespace.as_fd(), listener.as_fd())?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            _lookup: lookup,
        })
    }

    /// Forwards connections to the guest, for ever.
    pub async fn serve(self, guest: Arc<Guest>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = places.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let guest = guest.clone();
                    tokio::spawn(async move {
                        if let Err(error) = forward(stream, &guest).await {
                            tracing::debug!("port forward: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!("port forward: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn forward(mut stream: TcpStream, guest: &Guest) -> io::Result<()> {
    // The port that the client connected to.
    let port = stream.local_addr()?.port();
    match connect(port, guest).await {
        Ok(mut forwarded) => {
            copy_bidirectional(&mut stream, &mut forwarded).await?;
            Ok(())
        }
        Err(error) => {
            stream.set_zero_linger()?;
            Err(error)
        }
    }
}

async fn connect(port: u16, guest: &Guest) -> io::Result<UnixStream> {
    let (id, stream) = open_stream(guest.dir())?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let connected = guest.agent().forward(port, id).await;
    connected.map(|()| stream).map_err(io::Error::other)
}
