//! A container from the host's side: its start, what the verbs do to it, and its control groups.

pub mod cgroup;
pub mod ending;
pub mod fork;
pub mod lifecycle;
pub mod monitor_process;
mod restore;
pub mod running;
pub mod start;
pub mod update;
