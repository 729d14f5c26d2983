//! Ports of the guest, to which the host forwards connections (see the protocol's `Forward`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::streams::{Endpoint, StreamHub, relay};

/// How long a connection to the loopback interface may take: a listener there answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a port of the loopback interface, and starts to copy between the connection and the
/// host's stream of this id.
pub async fn forward(streams: &StreamHub, port: u16, stream: u64) -> io::Result<()> {
    let program = connect(port).await?;
    let host = streams.connection(stream).await.map_err(io::Error::other)?;
    let program = Endpoint::new(OwnedFd::from(program.into_std()?))?;
    tokio::spawn(relay::socket(program, host));
    Ok(())
}

/// Connects by IPv4, or else by IPv6.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let first = timeout(
        CONNECT_TIMEOUT,
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)),
    )
    .await;
    match first.map_err(io::Error::from).flatten() {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let second = timeout(
                CONNECT_TIMEOUT,
                TcpStream::connect((Ipv6Addr::LOCALHOST, port)),
            )
            .await;
            // Most programs listen on IPv4: its error says more.
            second.map_err(io::Error::from).flatten().map_err(|_| error)
        }
    }
}
