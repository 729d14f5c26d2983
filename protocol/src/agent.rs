//! The agent's ttrpc service, generated from `proto/`, where its contract is written.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
#![allow(unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

pub use agent::*;
pub use agent_ttrpc::*;
pub use storage::*;
