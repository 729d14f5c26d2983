//! Ports of a pod's, as the host reaches them. Whoever forwards a port (containerd and CRI-O do, for
//! `kubectl port-forward`) enters the pod's network namespace on the host and connects to 127.0.0.1
//! there, where nobody listens: the programs are in the guest. Such a connection is taken here, and the
//! agent makes one to the same port in the guest.
//!
//! A port that nobody listens at in the guest is found out only then: the connection is reset.

mod lookup;

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::guest::stdio::open_stream;
use crate::network::Namespace;
use crate::sandbox::Sandbox;
use lookup::Lookup;

/// Connections at one time; more wait to be taken.
const MAX_CONNECTIONS: usize = 64;

/// A pause where there are no descriptors or no memory.
const PAUSE: Duration = Duration::from_millis(100);

/// What takes the connections.
pub struct Loopback {
    listener: TcpListener,
    _lookup: Lookup,
}

impl Loopback {
    /// Begins to take what is connected to 127.0.0.1 in the namespace.
    pub fn listen(namespace: &Namespace) -> io::Result<Self> {
        // Its own port is of no interest.
        let listener = namespace.within(|| StdListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        let lookup = Lookup::attach(namespace.as_fd(), listener.as_fd())?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            _lookup: lookup,
        })
    }

    /// Passes connections on to the guest, for ever.
    pub async fn serve(self, sandbox: Arc<Sandbox>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = places.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let sandbox = sandbox.clone();
                    tokio::spawn(async move {
                        if let Err(error) = pass_on(stream, &sandbox).await {
                            tracing::debug!("a connection to a port of the guest's: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!("a connection to a port of the guest's: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn pass_on(mut stream: TcpStream, sandbox: &Sandbox) -> io::Result<()> {
    // The one it was meant for.
    let port = stream.local_addr()?.port();
    match connect(port, sandbox).await {
        Ok(mut guest) => {
            copy_bidirectional(&mut stream, &mut guest).await?;
            Ok(())
        }
        Err(error) => {
            stream.set_zero_linger()?;
            Err(error)
        }
    }
}

async fn connect(port: u16, sandbox: &Sandbox) -> io::Result<UnixStream> {
    let (id, guest) = open_stream(sandbox.dir())?;
    guest.set_nonblocking(true)?;
    let guest = UnixStream::from_std(guest)?;
    let connected = sandbox.agent().forward(port, id).await;
    connected.map(|()| guest).map_err(io::Error::other)
}
