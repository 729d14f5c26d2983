//! containerd's services on the daemon's socket: each method parses its request, calls the pod, and
//! translates the result. Both services live as long as the daemon.

pub mod error;
mod codes;
mod metrics;
pub mod task;
pub mod sandbox;
