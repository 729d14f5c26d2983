//! The host's connections to the guest: calls of the agent, standard streams, inherited
//! descriptors, and documents that are too long for a call.

pub mod agent;
pub mod descriptors;
pub mod document;
pub(crate) mod input_gate;
mod passed_file;
pub mod stdio;
