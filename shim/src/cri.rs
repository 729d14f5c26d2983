//! The messages of Kubernetes's container runtime interface, generated from `proto/cri.proto`.

#![allow(
    missing_docs,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
#![allow(unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

pub use cri::*;
