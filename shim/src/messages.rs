//! Messages that containerd passes on and that `containerd-shim-protos` lacks, generated from
//! `proto/`: Kubernetes's container runtime interface, the generic options of runtimes, and runc's
//! of old.

#![allow(
    missing_docs,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
#![allow(unused_qualifications)]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
