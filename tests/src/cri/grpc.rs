//! Unary gRPC calls over a Unix socket: HTTP/2 with a length before each message.

use std::path::Path;
use std::time::Duration;

use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tungstenite::Bytes;

/// The longest time of a call. Starting a pod boots a machine, perhaps one of twenty.
const LIMIT: Duration = Duration::from_secs(240);

/// A flag for compression, and the length.
const PREFIX: usize = 5;

/// An error status.
#[derive(Debug)]
pub struct Status {
    /// A code of gRPC.
    pub code: u32,
    pub message: String,
}

/// A connection that threads share.
pub struct Channel {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
}

impl Channel {
    pub fn connect(path: &Path) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(path).await?;
            let (sender, connection) = h2::client::handshake(stream)
                .await
                .map_err(std::io::Error::other)?;
            tokio::spawn(connection);
            Ok::<_, std::io::Error>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    pub fn call<A: Message>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Status> {
        let message = request.write_to_bytes().unwrap();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let uri = format!("http://localhost/{service}/{method}");
        let exchange = self.exchange(uri, frame.into());
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(LIMIT, exchange).await });
        let (trailers, bytes) = answer
            .unwrap_or_else(|_| panic!("{method} is not answered"))
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
        match text("grpc-status").unwrap_or("0").parse().unwrap() {
            0 => Ok(A::parse_from_bytes(&bytes[PREFIX..]).unwrap()),
            code => Err(Status {
                code,
                message: text("grpc-message").unwrap_or_default().to_owned(),
            }),
        }
    }

    async fn exchange(&self, uri: String, frame: Bytes) -> Result<(HeaderMap, Vec<u8>), h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(frame, true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await.transpose()? {
            body.flow_control().release_capacity(data.len())?;
            bytes.extend(data);
        }
        // An error may have no body, and then there is only one set of headers.
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        Ok((trailers, bytes))
    }
}
