//! The host's connections to the guest: calls of the agent, standard streams, and inherited
//! descriptors.

pub mod agent;
pub mod descriptors;
pub mod stdio;
