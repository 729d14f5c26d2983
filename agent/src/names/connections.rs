//! Questions that are asked on connections: a message's length stands before it (RFC 1035, 4.2.2).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::Question;

/// Connections at one time.
const MAX_CONNECTIONS: usize = 32;

/// How long a connection may be silent, and an answer take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Takes connections for ever.
pub async fn serve(listener: TcpListener, ask: mpsc::Sender<Question>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let ask = ask.clone();
                tokio::spawn(async move {
                    // It ends when the asker has had enough, or never asked.
                    let _ = answer_all(stream, ask).await;
                    drop(place);
                });
            }
            Err(error) => {
                log::debug!("a question about a name: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer_all(mut stream: TcpStream, ask: mpsc::Sender<Question>) -> io::Result<()> {
    loop {
        let length = timeout(PATIENCE, stream.read_u16()).await??;
        let mut message = vec![0; usize::from(length)];
        timeout(PATIENCE, stream.read_exact(&mut message)).await??;
        let (sender, answer) = oneshot::channel();
        ask.send((message, sender))
            .await
            .map_err(io::Error::other)?;
        let answer = timeout(PATIENCE, answer).await?.map_err(io::Error::other)?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}
