//! The state of a connection in a file.

use std::io::{ErrorKind, Read};

use serde::{Deserialize, Serialize};

use super::{Connection, Id, RECEIVE_BUFFER, State, end_of_input};

/// The most bytes that a host program has written and this side has not read: what a socket holds
/// (net.core.wmem_max), and more than that on any host.
const MAX_INPUT: usize = 4 << 20;

/// Bytes per read of input that is to be saved.
const INPUT_CHUNK: usize = 64 * 1024;

/// A connection's state in a file.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedConnection(State);

impl SavedConnection {
    /// A connection as it was, without a host program. None if it could not have been so.
    pub fn restore(self) -> Option<Connection> {
        let Self(state) = self;
        let fits = state.backlog.len() <= RECEIVE_BUFFER as usize
            && state.input.len() <= MAX_INPUT + INPUT_CHUNK;
        fits.then(|| Connection::of(state))
    }
}

impl Connection {
    /// The state, with what the host program has written. None if the guest has not heard of the
    /// stream, whose id has not come.
    pub fn save(&mut self) -> Option<SavedConnection> {
        if self.state.id == Id::Awaited {
            return None;
        }
        self.take_input();
        Some(SavedConnection(self.state.clone()))
    }

    /// Takes what the host program has written from its socket, so that it is saved.
    fn take_input(&mut self) {
        let Some(stream) = &self.stream else {
            return;
        };
        let mut chunk = vec![0; INPUT_CHUNK];
        while self.state.input.len() < MAX_INPUT && self.state.input_end == 0 {
            match (&mut &*stream).read(&mut chunk) {
                Ok(0) => self.state.input_end = end_of_input(stream),
                Ok(bytes) => self.state.input.extend(&chunk[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}
