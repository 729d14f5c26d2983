//! The host's side of a sandbox.
//!
//! Everything that rvm's command line and its containerd shim have in common: the state of
//! containers on disk, the size of machines, the translation of config.json, the shared directory,
//! standard streams, and the engines that run machines. See the crate's README for what it may
//! assume.

pub mod agent;
pub mod bring_up;
pub mod cgroup;
pub mod check;
pub mod config;
pub mod descriptors;
pub mod engine;
pub mod error_chain;
pub mod exec;
mod fanotify;
pub mod hooks;
pub mod idmap;
pub mod lifecycle;
pub mod local_time;
pub mod log_lines;
pub mod loopback;
pub mod monitor;
mod mount_attributes;
pub mod names;
pub mod network;
pub mod pod_limits;
pub mod process;
mod read_only;
pub mod readable;
pub mod running;
pub mod sandbox;
mod shown_processes;
pub mod signals;
pub mod sizing;
pub mod spawn;
pub mod spec;
pub mod stand_in;
pub mod state;
pub mod stdio;
pub mod storage;
pub mod terminal;
pub mod timings;
pub mod update;
pub mod users;
pub mod view;
pub mod volumes;
