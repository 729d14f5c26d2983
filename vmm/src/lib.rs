//! The virtual machine monitor.
//!
//! One process runs one machine. rvm starts it with a control socket as its standard input, sends
//! it a [`rvm_protocol::vmm::MachineConfig`] with every descriptor that the machine needs, and
//! receives its events until it ends. The crate's README says what it may assume and explains each
//! room.

// The rooms, bottom first: a room uses only rooms above it in this list. A test reads this block,
// so rustfmt leaves its order alone (`reorder_modules` in rustfmt.toml).
mod logging;
mod fds;
mod file_id;
mod threads;
mod jail;
mod memory;
mod arch;
mod boot;
mod kvm;
mod virtio;
mod bus;
mod vcpus;
mod hotplug;
mod machine;
mod control;
mod probe;
mod qemu;
pub mod commands;

/// The jails of the three processes and the filters of their threads, for the test that enters them
/// as a program that was taken over.
pub mod jails {
    pub use crate::jail::filter::{Rule, ThreadKind, When, Why};
    pub use crate::machine::enter_jail as enter_machine;
    pub use crate::qemu::backend::enter_jail as enter_backend;
    pub use crate::qemu::enter_jail as enter_qemu;
}

/// What a fuzzer calls, with bytes that a guest or a file could hold: one function for each file in
/// fuzz/fuzz_targets. None may panic.
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing {
    pub use crate::machine::read_any_state as template_state;
    pub use crate::virtio::fs::hostile::requests as fuse_layer;
    pub use crate::virtio::hostile::devices as virtio_devices;
    pub use crate::virtio::hostile::registers as mmio;
    pub use crate::virtio::vhost_user::hostile::messages as vhost_user;
    pub use crate::virtio::vsock::hostile::streams as vsock;

    #[cfg(test)]
    mod tests {
        #[test]
        fn every_target_takes_its_corpus() {
            rvm_fuzz_input::replay(
                "rvm_vmm",
                &[
                    ("fuse_layer", super::fuse_layer),
                    ("mmio", super::mmio),
                    ("template_state", super::template_state),
                    ("vhost_user", super::vhost_user),
                    ("virtio_devices", super::virtio_devices),
                    ("vsock", super::vsock),
                ],
            );
        }
    }
}
