//! How containerd runs the program: its command line, its input, its description of itself,
//! its log.

pub mod flags;
pub mod input;
pub mod info;
pub mod log;
