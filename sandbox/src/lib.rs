//! The host's side of a sandbox.
//!
//! Everything that rvm's command line and its containerd shim have in common: the state of
//! containers on disk, the size of machines, the translation of config.json, the shared directory,
//! standard streams, and the engines that run machines. See the crate's README for what it may
//! assume.

// The rooms, bottom first: a room uses those above it in this list, never one below. A test of the
// repository checks it. A room that only this crate uses is private.
pub mod host;
pub mod config;
mod sizing;
pub mod cgroup;
mod share;
pub mod disk;
mod dir;
pub mod network;
pub mod checkpoint;
pub mod engine;
pub mod spec;
pub mod guest;
pub mod sandbox;
pub mod state;
mod hooks;
pub mod anchor;
pub mod control;
pub mod container;
pub mod monitor;
pub mod codes;
pub mod check;
