//! Queries on TCP connections: the length of a message precedes it (RFC 1035, 4.2.2).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::Query;

/// How many connections are served at one time.
const MAX_CONNECTIONS: usize = 32;

/// How long a connection may be idle, and an answer take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Accepts connections for ever.
pub async fn serve(listener: TcpListener, ask: mpsc::Sender<Query>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let ask = ask.clone();
                tokio::spawn(async move {
                    // Ends with an error when the client closes the connection or is idle.
                    let _ = answer_all(stream, ask).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::debug!("a connection for DNS queries: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(mut stream: TcpStream, ask: mpsc::Sender<Query>) -> io::Result<()> {
    loop {
        let length = timeout(TIMEOUT, stream.read_u16()).await??;
        let mut message = vec![0; usize::from(length)];
        timeout(TIMEOUT, stream.read_exact(&mut message)).await??;
        let (sender, answer) = oneshot::channel();
        ask.send((message, sender))
            .await
            .map_err(io::Error::other)?;
        let answer = timeout(TIMEOUT, answer).await?.map_err(io::Error::other)?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}
