//! Names that Docker serves. Its name server listens at 127.0.0.11 in the container's network
//! namespace, where the guest cannot reach it: the agent passes questions on, and they are asked here
//! (see `rvm_protocol::names`).

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

/// Where containers look up who answers their questions.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// As much of it as is read: the library reads only the first three servers.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// Questions that are asked at one time, so that a guest cannot fill the host with sockets.
const MAX_ASKED: usize = 64;

/// How long an answer may take. Docker gives the servers that it asks itself four seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The files of the host in which a container looks for name servers.
pub fn resolv_confs(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|mount| is_bind(mount));
    binds
        .filter(|mount| mount.destination() == Path::new(RESOLV_CONF))
        .filter_map(|mount| mount.source().clone())
        .collect()
}

/// Whether any of these files sends a container to Docker's name server.
pub fn are_asked_of_docker(resolv_confs: &[PathBuf]) -> bool {
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

/// Answers the questions that come on a stream from the guest, until it ends, in a thread of its own.
/// The thread calls `enter` first, which takes it into the network namespace.
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
                tracing::warn!("the names that Docker serves are no longer found: {error}");
            }
            _ => tracing::debug!("names are no longer relayed"),
        }
    };
    let builder = thread::Builder::new().name("names".to_owned());
    builder.spawn(work).map(drop)
}

async fn serve(stream: StdStream) -> io::Result<()> {
    let (questions, answers) = UnixStream::from_std(stream)?.into_split();
    let (answer, answered) = mpsc::channel(MAX_ASKED);
    tokio::select! {
        ended = ask_all(questions, answer) => ended,
        ended = write_all(answers, answered) => ended,
    }
}

async fn ask_all(
    mut from: OwnedReadHalf,
    answer: mpsc::Sender<(Header, Vec<u8>)>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_ASKED));
    loop {
        let mut header = [0; Header::SIZE];
        from.read_exact(&mut header).await?;
        let header = Header::from_bytes(header);
        let mut message = vec![0; usize::from(header.length)];
        from.read_exact(&mut message).await?;
        // A guest that asks too much waits.
        let place = places.clone().acquire_owned().await;
        let answer = answer.clone();
        tokio::spawn(async move {
            let asked = timeout(PATIENCE, ask(header.transport, &message)).await;
            let found = asked.map_err(io::Error::from).flatten();
            let found = found.unwrap_or_else(|error| {
                tracing::debug!("a question about a name was not answered: {error}");
                Vec::new()
            });
            // Fails only when the guest is gone.
            let _ = answer.send((header, found)).await;
            drop(place);
        });
    }
}

async fn write_all(
    mut to: OwnedWriteHalf,
    mut answered: mpsc::Receiver<(Header, Vec<u8>)>,
) -> io::Result<()> {
    while let Some((header, message)) = answered.recv().await {
        let length = u16::try_from(message.len()).unwrap_or_default();
        let header = Header { length, ..header };
        to.write_all(&header.to_bytes()).await?;
        to.write_all(&message[..usize::from(length)]).await?;
    }
    Ok(())
}

async fn ask(transport: Transport, question: &[u8]) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => {
            // A new socket for each: the rule that leads to Docker's real port may be made only
            // after the first question, and the kernel keeps to its first decision about a socket.
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect((SERVER, PORT)).await?;
            socket.send(question).await?;
            let mut answer = vec![0; usize::from(u16::MAX)];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect((SERVER, PORT)).await?;
            let length = u16::try_from(question.len()).map_err(io::Error::other)?;
            stream.write_u16(length).await?;
            stream.write_all(question).await?;
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
    fn what_cannot_be_answered_is_answered_with_nothing() {
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
