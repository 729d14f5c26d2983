//! The DNS relay to Docker's name server. That listens at 127.0.0.11 in the container's network
//! namespace, where the guest cannot reach it. The agent sends the guest's requests here over a
//! stream (`rvm_protocol::names`), and this process makes them in the namespace.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rvm_protocol::names::{Header, PORT, SERVER, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::spec::mounts::is_bind;

/// The file that names a container's DNS servers, resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The most that is read of it, in bytes: a resolver uses only the first three servers.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// Requests under way at one time, so that a guest cannot fill the host with sockets.
const MAX_REQUESTS: usize = 64;

/// How long a response may take. Docker gives the servers behind its own four seconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The files of the host that are mounted as a container's resolv.conf.
pub fn resolv_confs(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| is_bind(mount));
    binds
        .filter(|mount| mount.destination() == Path::new(RESOLV_CONF))
        .filter_map(|mount| mount.source().clone())
        .collect()
}

/// Whether any of these files names Docker's name server.
pub fn name_docker(resolv_confs: &[PathBuf]) -> bool {
    resolv_confs
        .iter()
        .any(|path| read(path).is_ok_and(|text| names_the_server(&text)))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_RESOLV_CONF)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// See resolv.conf(5).
fn names_the_server(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().and_then(|word| word.parse().ok()) == Some(IpAddr::V4(SERVER))
    })
}

/// Serves the requests on a stream from the guest until it ends, in a thread of its own. The thread
/// first calls `enter`, which moves it into the network namespace.
pub fn relay(
    stream: StdStream,
    enter: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let work = move || {
        let served = enter().and_then(|()| runtime.block_on(serve(stream)));
        match served {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                tracing::warn!("the DNS relay to Docker's name server has failed: {error}");
            }
            _ => tracing::debug!("the DNS relay has ended"),
        }
    };
    let builder = thread::Builder::new().name("dns".to_owned());
    builder.spawn(work).map(drop)
}

async fn serve(stream: StdStream) -> io::Result<()> {
    let (requests, responses) = UnixStream::from_std(stream)?.into_split();
    let (respond, pending) = mpsc::channel(MAX_REQUESTS);
    tokio::select! {
        ended = request_all(requests, respond) => ended,
        ended = write_all(responses, pending) => ended,
    }
}

async fn request_all(
    mut from: OwnedReadHalf,
    respond: mpsc::Sender<(Header, Vec<u8>)>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        let mut header = [0; Header::SIZE];
        from.read_exact(&mut header).await?;
        let header = Header::from_bytes(header);
        let mut message = vec![0; usize::from(header.length)];
        from.read_exact(&mut message).await?;
        // A guest that makes too many requests waits.
        let place = places.clone().acquire_owned().await;
        let respond = respond.clone();
        tokio::spawn(async move {
            let requested = timeout(RESPONSE_TIMEOUT, request(header.transport, &message)).await;
            let response = requested.map_err(io::Error::from).flatten();
            let response = response.unwrap_or_else(|error| {
                tracing::debug!("a DNS request got no response: {error}");
                Vec::new()
            });
            // Fails only when the guest is gone.
            let _ = respond.send((header, response)).await;
            drop(place);
        });
    }
}

async fn write_all(
    mut to: OwnedWriteHalf,
    mut pending: mpsc::Receiver<(Header, Vec<u8>)>,
) -> io::Result<()> {
    while let Some((header, message)) = pending.recv().await {
        let length = u16::try_from(message.len()).unwrap_or_default();
        let header = Header { length, ..header };
        to.write_all(&header.to_bytes()).await?;
        to.write_all(&message[..usize::from(length)]).await?;
    }
    Ok(())
}

async fn request(transport: Transport, message: &[u8]) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => {
            // A new socket for each: Docker may make the rule that leads to its real port only
            // after the first request, and the kernel keeps its first decision about a socket.
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect((SERVER, PORT)).await?;
            socket.send(message).await?;
            let mut answer = vec![0; usize::from(u16::MAX)];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect((SERVER, PORT)).await?;
            let length = u16::try_from(message.len()).map_err(io::Error::other)?;
            stream.write_u16(length).await?;
            stream.write_all(message).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_found_among_others() {
        assert!(names_the_server(
            "search x\nnameserver 127.0.0.11\noptions ndots:0\n"
        ));
        assert!(names_the_server(
            "nameserver 192.0.2.1\n nameserver\t127.0.0.11"
        ));
        for other in [
            "nameserver 127.0.0.1\n",
            "# nameserver 127.0.0.11\n",
            "nameserver\n",
            "",
        ] {
            assert!(!names_the_server(other), "{other:?}");
        }
    }

    #[test]
    fn a_request_without_a_response_gets_an_empty_one() {
        let (mut ours, theirs) = StdStream::pair().unwrap();
        relay(theirs, || Ok(())).unwrap();
        let header = Header {
            tag: 7,
            transport: Transport::Tcp,
            length: 3,
        };
        io::Write::write_all(&mut ours, &header.to_bytes()).unwrap();
        io::Write::write_all(&mut ours, b"who").unwrap();
        let mut answer = [0; Header::SIZE];
        ours.read_exact(&mut answer).unwrap();
        assert_eq!(
            Header::from_bytes(answer),
            Header {
                length: 0,
                ..header
            }
        );
    }
}
