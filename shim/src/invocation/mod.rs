//! How containerd runs the program: its command line, its description of itself, its log.

pub mod flags;
pub mod info;
pub mod log;
