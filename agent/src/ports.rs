//! Ports of the guest's, which the host forwards connections to (see the protocol's `Forward`).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::streams::{Endpoint, StreamHub, relay};

/// Whoever listens here answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to a port of the loopback interface, and copies between the connection and the stream of
/// this id, for as long as they last.
pub async fn forward(streams: &StreamHub, port: u16, stream: u64) -> io::Result<()> {
    let program = connect(port).await?;
    let host = streams.connection(stream).await.map_err(io::Error::other)?;
    let program = Endpoint::new(OwnedFd::from(program.into_std()?))?;
    tokio::spawn(relay::socket(program, host));
    Ok(())
}

/// As the host would: by IPv4, or else by IPv6.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let first = timeout(PATIENCE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await;
    match first.map_err(io::Error::from).flatten() {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let second = timeout(PATIENCE, TcpStream::connect((Ipv6Addr::LOCALHOST, port))).await;
            // What was wrong with the first is what matters.
            second.map_err(io::Error::from).flatten().map_err(|_| error)
        }
    }
}
