//! Streams to a container or a port of a pod's: WebSockets that carry several channels, as
//! kubelet's streaming server speaks them (v4.channel.k8s.io). The first byte of a message is the
//! channel.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::WebSocket;
use tungstenite::{Error, Message};

use crate::network::Network;

/// The longest wait for a message.
const LIMIT: Duration = Duration::from_secs(60);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

pub struct Stream {
    socket: WebSocket<TcpStream>,
    /// The data received, by channel.
    received: [Vec<u8>; 5],
    ended: bool,
}

impl Stream {
    /// Connects to a URL from within the network namespace that it is served in.
    pub fn connect(network: &Network, url: &str) -> Self {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.into_client_request().unwrap();
        let protocol = "v4.channel.k8s.io".parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let host = request.uri().authority().unwrap().as_str().to_owned();
        let tcp = network.inside(|| TcpStream::connect(host)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let (socket, _) = tungstenite::client(request, tcp).unwrap();
        let limit = Some(Duration::from_millis(200));
        socket.get_ref().set_read_timeout(limit).unwrap();
        Self {
            socket,
            received: Default::default(),
            ended: false,
        }
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).unwrap();
    }

    /// Sends to the process, or to the port.
    pub fn write(&mut self, bytes: &[u8]) {
        self.send(STDIN, bytes);
    }

    /// Sets the size of the process's terminal.
    pub fn resize(&mut self, width: u16, height: u16) {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        self.send(RESIZE, size.as_bytes());
    }

    /// Receives one message, unless none comes for a while.
    fn receive(&mut self) {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) if !bytes.is_empty() => {
                self.received[usize::from(bytes[0])].extend(&bytes[1..]);
            }
            Ok(Message::Close(_)) => self.ended = true,
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) && !self.ended {
            self.receive();
            let [_, out, err, ..] = &self.received;
            let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
            assert!(start.elapsed() < LIMIT, "{what}: {out:?} {err:?}");
        }
    }

    fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.received[usize::from(channel)]).into_owned()
    }

    /// Waits until the standard output contains a text.
    pub fn wait_for(&mut self, text: &str) {
        self.wait(text, |stream| stream.text(STDOUT).contains(text));
    }

    /// Forgets the output so far.
    pub fn forget(&mut self) {
        self.received = Default::default();
    }

    /// Waits for the end; returns standard output, standard error and exit code.
    pub fn finish(mut self) -> (String, String, i32) {
        self.wait("the end", |stream| !stream.text(STATUS).is_empty());
        let status: Value = serde_json::from_str(&self.text(STATUS)).unwrap_or_default();
        let code = match status["status"].as_str() {
            Some("Success") => 0,
            _ => {
                let message = status["details"]["causes"][0]["message"].as_str();
                let code = message.and_then(|message| message.parse().ok());
                code.unwrap_or_else(|| panic!("no exit code in {status}"))
            }
        };
        (self.text(STDOUT), self.text(STDERR), code)
    }

    /// Reads from the port until it closes or has sent a text. The data on each of its two channels
    /// begins with the port's number.
    pub fn read_port(&mut self, text: &str) -> String {
        self.wait(text, |stream| {
            stream.text(STDIN).contains(text) || stream.received[1].len() > 2
        });
        let data = self.received[0].get(2..).unwrap_or_default();
        let error = self.received[1].get(2..).unwrap_or_default();
        String::from_utf8_lossy(data).into_owned() + &String::from_utf8_lossy(error)
    }
}
