//! What stands before virtiofsd's server: requests that it does not serve, or not as a guest needs
//! it, are handled here. A handler answers at once, or keeps the request and answers later.

use virtiofsd::fuse::{InHeader, InterruptIn};

use super::deferred::{Deferred, Origin, Reply};
use super::message::{opcode, take};
use crate::virtio::chain::Buffers;

/// What becomes of a request.
pub enum Outcome {
    Answered(Reply),
    /// The guest expects no answer.
    Silent,
    /// The request is kept in [`Deferred`].
    Later,
    /// The request is virtiofsd's.
    Passed,
}

pub struct Front {
    pub deferred: Deferred,
}

impl Front {
    /// Whether [`Self::handle`] handles this operation. If not, the request need not be read.
    pub fn handles(&self, header: &InHeader) -> bool {
        matches!(header.opcode, opcode::INTERRUPT)
    }

    /// Handles a request; `body` is what follows its header.
    pub fn handle(&mut self, _origin: Origin, header: &InHeader, mut body: Buffers<'_>) -> Outcome {
        match header.opcode {
            opcode::INTERRUPT => {
                if let Ok(InterruptIn { unique }) = take(&mut body) {
                    self.deferred.interrupt(unique);
                }
                Outcome::Silent
            }
            _ => Outcome::Passed,
        }
    }
}
