//! A document for the agent, a configuration or a process object: in the request, or over a
//! connection of its own if it is longer than a request may be.

use std::io::Write as _;
use std::thread;

use serde::Serialize;

use super::agent::AgentError;
use super::stdio::open_stream;
use crate::dir::SandboxDir;

/// The longest document in a request, in bytes: ttrpc carries 4 MiB.
const MAX_INLINE: usize = 2 << 20;

/// A document that is part of a request, or on its way.
#[derive(Debug)]
pub struct Document {
    /// The document, unless it has a stream.
    pub(super) inline: Vec<u8>,
    /// The id of the connection that carries the document; 0 if it is in the request.
    pub(super) stream: u64,
}

impl Document {
    /// Encodes a value as JSON, and begins to send it to the guest if it is long. The agent needs
    /// the request to find it.
    pub fn send<T: Serialize>(sandbox: &SandboxDir, value: &T) -> Result<Self, AgentError> {
        let json = serde_json::to_vec(value)?;
        if json.len() <= MAX_INLINE {
            return Ok(Self {
                inline: json,
                stream: 0,
            });
        }
        let (id, mut stream) = open_stream(sandbox).map_err(AgentError::Connect)?;
        // It waits for the guest to read, and no longer than the machine lives.
        let send = move || {
            if let Err(error) = stream.write_all(&json) {
                tracing::debug!("the guest has not read its configuration: {error}");
            }
        };
        let thread = thread::Builder::new().name("document".to_owned());
        thread.spawn(send).map_err(AgentError::Connect)?;
        Ok(Self {
            inline: Vec::new(),
            stream: id,
        })
    }
}
