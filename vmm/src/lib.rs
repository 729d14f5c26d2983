//! The virtual machine monitor.
//!
//! One process runs one machine. The host's side of rvm starts it with a control socket as its
//! standard input, sends it a [`rvm_protocol::vmm::MachineConfig`] and every descriptor the machine
//! needs, and hears from it until it ends. See the crate's README for what it may assume.

pub mod arch;
pub mod backend;
pub mod boot;
pub mod bus;
pub mod commands;
pub mod control;
pub mod cpus;
pub mod fd;
pub mod handed;
pub mod hot_memory;
pub mod jail;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod nets;
pub mod probe;
pub mod qemu;
pub mod report;
pub mod reserved;
pub mod size;
pub mod virtio;
