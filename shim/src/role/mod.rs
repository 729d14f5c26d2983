//! The three roles of the program, each run by containerd or by `start`.

pub mod start;
pub mod serve;
pub mod delete;
