//! The agent's end of a connection: ttrpc's frames, written by hand so that they can be wrong.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use protobuf::Message;
use rvm_protocol::agent::Event;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MessageHeader, Request, Response};

/// A call of the host.
pub struct Call {
    /// Names the call in its answer.
    pub stream: u32,
    pub method: String,
    pub payload: Vec<u8>,
}

impl Call {
    pub fn decode<T: Message>(&self) -> T {
        T::parse_from_bytes(&self.payload).unwrap()
    }
}

/// A connection of the host.
pub struct Connection {
    socket: UnixStream,
    /// Held while frames are written, which would mix otherwise.
    writing: Mutex<()>,
}

impl Connection {
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            writing: Mutex::default(),
        }
    }

    /// The next call; None at the end of the connection.
    pub fn read(&self) -> Option<Call> {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        (&self.socket).read_exact(&mut header).ok()?;
        let header = MessageHeader::from(header);
        let mut message = vec![0; header.length as usize];
        (&self.socket).read_exact(&mut message).ok()?;
        let request = Request::parse_from_bytes(&message).unwrap();
        Some(Call {
            stream: header.stream_id,
            method: request.method,
            payload: request.payload,
        })
    }

    /// Writes frames. False once the host has closed the connection.
    pub fn write(&self, frames: &[u8]) -> bool {
        let _writing = self.writing.lock().unwrap();
        (&self.socket).write_all(frames).is_ok()
    }

    pub fn close(&self) {
        // The host may have been faster.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// The frame of an answer.
pub fn answer(stream: u32, payload: Vec<u8>) -> Vec<u8> {
    let response = Response {
        payload,
        ..Default::default()
    };
    response_frame(stream, &response)
}

/// The frame of a refusal.
pub fn refusal(stream: u32, code: Code, text: &str) -> Vec<u8> {
    let mut response = Response::new();
    response.set_status(ttrpc::get_status(code, text));
    response_frame(stream, &response)
}

fn response_frame(stream: u32, response: &Response) -> Vec<u8> {
    let message = response.write_to_bytes().unwrap();
    let length = message.len().try_into().unwrap();
    frame(MessageHeader::new_response(stream, length), &message)
}

/// The frame of an event.
pub fn event(stream: u32, event: &Event) -> Vec<u8> {
    let message = event.write_to_bytes().unwrap();
    let length = message.len().try_into().unwrap();
    frame(MessageHeader::new_data(stream, length), &message)
}

/// A frame, whose header may lie.
pub fn frame(header: MessageHeader, message: &[u8]) -> Vec<u8> {
    [Vec::from(header).as_slice(), message].concat()
}
