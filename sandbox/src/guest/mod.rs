//! The guest from the host's side: the agent's calls, standard streams, and descriptors passed along.

pub mod agent;
pub mod descriptors;
pub mod stdio;
